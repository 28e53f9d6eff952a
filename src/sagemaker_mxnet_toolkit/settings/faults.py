"""Faults of a configuration, collected first and put into words at the end.

Only at the end are all secrets known that no message may show.
"""

import json
import re
from typing import Any, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.redaction import (
    is_secret,
    redact_assignments,
    redact_mapping,
    redact_text,
    secrets_in,
)

_EXCERPT = 80


class Found(NamedTuple):
    """A value and where it was found.

    Attributes:
        value: text, or what JSON gives.
        name: of the variable, key or hyperparameter: it tells whether the value is a secret.
        place: the same for a reader, with the file where there is one.
        raw: whether the value is a whole document that could not be parsed.
    """

    value: Any
    name: str
    place: str
    raw: bool = False

    def shown(self, secrets: Iterable[str]) -> str:
        """Return the beginning of the value, without secrets."""
        value = self.value
        # Such a text may be JSON, whole or broken, that holds a secret below some name.
        structured = isinstance(value, str) and (self.raw or re.search("[:=]", value))
        if structured and any(map(is_secret, re.findall(r"[\w.-]+", value))):
            return "(not shown: it names a secret)"
        value = redact_mapping({self.name: value})[self.name]
        text = redact_text(value if isinstance(value, str) else json.dumps(value), secrets)
        text = text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."
        return repr(text) if isinstance(value, str) else text


def present(found: Optional[Found]) -> Optional[Found]:
    """Return what was found unless it is empty: ``null``, or an empty text."""
    return None if found is None or found.value is None or found.value == "" else found


class Faults:
    """The faults found so far."""

    def __init__(self) -> None:
        self._secrets: Set[str] = set()
        self._faults: List[Tuple[str, Optional[Found], str]] = []

    def keep_secret(self, mapping: Mapping[str, Any]) -> None:
        """Never show the secret values of this mapping."""
        self._secrets |= secrets_in(mapping)

    def add(self, problem: str, found: Optional[Found] = None, expected: str = "") -> None:
        """Note one fault: the problem, the value it is about, and what was expected."""
        self._faults.append((problem, found, expected))

    def sentences(self) -> Tuple[str, ...]:
        """Return each fault as one sentence that can be printed to any stream."""
        sentences = []
        for problem, found, expected in self._faults:
            text = redact_assignments(redact_text(problem, self._secrets))
            if found is not None:
                text += f": {found.shown(self._secrets)} ({found.place})"
            text += f"; expected {expected}" if expected else ""
            sentences.append(text.encode("utf-8", "backslashreplace").decode())
        return tuple(sentences)
