"""Content types: what a body is in, and what an answer may be in (RFC 9110, 8.3 and 12.5.1)."""

import functools
from dataclasses import dataclass, field
from typing import List, Mapping, Optional, Tuple

JSON = "application/json"
CSV = "text/csv"
NPY = "application/x-npy"

SUPPORTED = (JSON, CSV, NPY)
"""What is read and written without a function of the user's."""

TEXT = (JSON, CSV)
"""What a function of the user's gets as text; it gets anything else as bytes."""

# The SageMaker Python SDK's document on MXNet calls CSV by this name.
_ALIASES = {"text-csv": CSV}


# Callers send the same few headers again and again.
_remembered = functools.lru_cache(maxsize=64)


@dataclass(frozen=True)
class MediaType:
    """A content type.

    Attributes:
        name: type and subtype in lower case, such as ``text/csv``.
        parameters: its parameters, their names in lower case.
    """

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@_remembered
def parse_media_type(text: str) -> MediaType:
    """Read one content type, with or without parameters, in any case."""
    name, *rest = text.split(";")
    name = name.strip().lower()
    parameters = {}
    for parameter in rest:
        key, equals, value = parameter.partition("=")
        if equals:
            parameters[key.strip().lower()] = value.strip().strip('"')
    return MediaType(_ALIASES.get(name, name), parameters)


def preferences(accept: str) -> List[Tuple[str, float]]:
    """Read a header Accept: media ranges and their quality, the preferred ones first.

    A range whose quality is no number from 0 to 1 is left out.
    """
    ranges = []
    for text in accept.split(","):
        media_type = parse_media_type(text)
        quality = _quality(media_type.parameters.get("q", "1"))
        if media_type.name and quality is not None:
            ranges.append((media_type.name, quality))
    # Stable: among equals the order of the header counts.
    return sorted(ranges, key=lambda entry: (-entry[1], entry[0].count("*")))


@_remembered
def choose(accept: str, default: str, offered: Tuple[str, ...] = SUPPORTED) -> Optional[str]:
    """Choose the content type of an answer, or None when nothing offered is acceptable.

    Args:
        accept: the header Accept; empty means that anything is welcome.
        default: what is taken where the header leaves the choice.
        offered: what can be answered.
    """
    ranges = preferences(accept) if accept.strip() else [("*/*", 1.0)]
    refused = {name for name, quality in ranges if quality == 0}
    ordered = sorted(offered, key=lambda name: name != default)
    for name, quality in ranges:
        for candidate in ordered:
            if quality > 0 and candidate not in refused and _matches(name, candidate):
                return candidate
    return None


def preferred(accept: str, default: str) -> str:
    """Return what a caller wants most, offered or not; ``default`` for a range such as ``*/*``."""
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
