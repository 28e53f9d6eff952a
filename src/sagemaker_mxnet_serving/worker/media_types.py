"""The headers Content-Type and Accept (RFC 9110, 8.3 and 12.5.1)."""

import functools
from dataclasses import dataclass, field
from typing import List, Mapping, Optional, Tuple

from sagemaker_mxnet_serving.inference import InferenceError

JSON = "application/json"
CSV = "text/csv"
NPY = "application/x-npy"

SUPPORTED = (JSON, CSV, NPY)
"""The content types that are decoded and encoded without a script."""

TEXT = (JSON, CSV)
"""The content types that a script's function gets as text; it gets others as bytes."""

# The documentation of the SageMaker Python SDK uses this name for CSV.
_ALIASES = {"text-csv": CSV}

# Clients send the same few headers in all requests.
_cached = functools.lru_cache(maxsize=64)


@dataclass(frozen=True)
class MediaType:
    """A content type.

    Attributes:
        name: type and subtype in lower case, such as ``text/csv``.
        parameters: its parameters, with names in lower case.
    """

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@_cached
def parse_media_type(text: str) -> MediaType:
    """Parse one content type, with or without parameters, in any case."""
    name, *rest = text.split(";")
    name = name.strip().lower()
    parameters = {}
    for parameter in rest:
        key, equals, value = parameter.partition("=")
        if equals:
            parameters[key.strip().lower()] = value.strip().strip('"')
    return MediaType(_ALIASES.get(name, name), parameters)


def preferences(accept: str) -> List[Tuple[str, float]]:
    """Parse a header Accept: media ranges and their quality, the preferred ones first.

    A range is ignored if its quality is not a number from 0 to 1.
    """
    ranges = []
    for text in accept.split(","):
        media_type = parse_media_type(text)
        quality = _quality(media_type.parameters.get("q", "1"))
        if media_type.name and quality is not None:
            ranges.append((media_type.name, quality))
    # The sort is stable: equal ranges keep the order of the header.
    return sorted(ranges, key=lambda entry: (-entry[1], entry[0].count("*")))


@_cached
def choose(accept: str, default: str, offered: Tuple[str, ...] = SUPPORTED) -> str:
    """Return the content type of a response.

    Args:
        accept: the header Accept; empty for any.
        default: the preferred one if the client accepts any.
        offered: the supported ones.

    Raises:
        InferenceError: 406 if the client accepts none of these.
    """
    ranges = preferences(accept) if accept.strip() else [("*/*", 1.0)]
    rejected = {name for name, quality in ranges if quality == 0}
    ordered = sorted(offered, key=lambda name: name != default)
    for name, quality in ranges:
        for candidate in ordered:
            if quality > 0 and candidate not in rejected and _matches(name, candidate):
                return candidate
    expected = ", ".join(offered)
    raise InferenceError(
        f"Accept {accept[:100]!r} is not supported; expected one of {expected}", 406
    )


def preferred(accept: str, default: str) -> str:
    """Return the content type that a client prefers; ``default`` for a range such as ``*/*``."""
    for name, quality in preferences(accept):
        if quality > 0:
            return default if "*" in name else name
    return default


def _matches(media_range: str, name: str) -> bool:
    if media_range in ("*/*", "*", name):
        return True
    kind, _, subtype = media_range.partition("/")
    return subtype == "*" and name.startswith(kind + "/")


def _quality(text: str) -> Optional[float]:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
