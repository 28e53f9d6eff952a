"""Collects the faults of a configuration.

Messages are formatted at the end, when all secrets that they must not show are known.
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
        value: a string, or any JSON value.
        name: name of the variable, key or hyperparameter, which decides whether it is a secret.
        source: the name as messages show it, with the file if there is one.
        raw: whether the value is the text of a JSON document.
    """

    value: Any
    name: str
    source: str
    raw: bool = False

    def shown(self, secrets: Iterable[str]) -> str:
        """Return the beginning of the value, without secrets."""
        value = self.value
        # The text may be valid or invalid JSON that contains a secret.
        structured = isinstance(value, str) and (self.raw or re.search("[:=]", value))
        if structured and any(map(is_secret, re.findall(r"[\w.-]+", value))):
            return "(not shown, since it may contain a secret)"
        value = redact_mapping({self.name: value})[self.name]
        text = redact_text(value if isinstance(value, str) else json.dumps(value), secrets)
        text = text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."
        return repr(text) if isinstance(value, str) else text


def non_empty(found: Optional[Found]) -> Optional[Found]:
    """Return ``None`` for a value that is ``null`` or an empty string, else the value itself."""
    return None if found is None or found.value is None or found.value == "" else found


class Faults:
    """The faults found so far."""

    def __init__(self) -> None:
        self._secrets: Set[str] = set()
        self._faults: List[Tuple[str, Optional[Found], str]] = []

    def keep_secret(self, mapping: Mapping[str, Any]) -> None:
        """Mask the secret values of this mapping in all messages."""
        self._secrets |= secrets_in(mapping)

    def add(self, problem: str, found: Optional[Found] = None, expected: str = "") -> None:
        """Record a fault: the problem, the value that has it, and what was expected."""
        self._faults.append((problem, found, expected))

    def sentences(self) -> Tuple[str, ...]:
        """Return a message for each fault, which can be encoded as UTF-8."""
        sentences = []
        for problem, found, expected in self._faults:
            text = redact_assignments(redact_text(problem, self._secrets))
            if found is not None:
                text = f"{found.source}: {text}: {found.shown(self._secrets)}"
            text += f"; expected {expected}" if expected else ""
            sentences.append(text.encode("utf-8", "backslashreplace").decode())
        return tuple(sentences)
