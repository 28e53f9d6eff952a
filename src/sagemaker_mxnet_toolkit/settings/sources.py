"""Sources of the configuration: environment variables and JSON files, and the faults in them.

A value is passed on with its source (``Found``). Messages about faults are formatted at the end,
when all secrets that they must not show are known.
"""

import errno
import json
import math
import os
import re
import stat
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.redaction import (
    is_secret,
    redact_assignments,
    redact_mapping,
    redact_text,
    secrets_in,
)

DEEPEST = 64
"""Maximum levels of nesting, far above that of any real configuration."""

_EXCERPT = 80
_TYPES = {dict: "a JSON object", list: "a JSON list", bool: "true or false"}


def parse(text: str) -> Any:
    """Parse JSON.

    Python's ``json`` also accepts ``NaN``, ``Infinity`` and 1e999, which are not valid JSON and
    which other programs that read ``SM_HPS`` reject.

    Raises:
        ValueError: it is not valid JSON, is nested deeper than ``DEEPEST``, or contains NaN,
            infinity or a number that is too large.
    """
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if any(depth > DEEPEST for depth, _ in walk(value)):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def walk(value: Any) -> Iterator[Tuple[int, Any]]:
    """Yield a JSON value and every key and value in it, each with its depth."""
    pending = [(0, value)]
    while pending:
        depth, value = pending.pop()
        yield depth, value
        if isinstance(value, dict):
            pending += [(depth + 1, item) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            pending += [(depth + 1, item) for item in value]


def decode(text: str) -> Any:
    """Return a hyperparameter's value: the parsed JSON, or the text if it is not valid JSON."""
    try:
        return parse(text)
    except ValueError:
        return text


def variable_text(value: Any) -> str:
    """Return the text of an environment variable for a JSON value.

    Strings stay as they are, ``null`` becomes empty, and others become JSON, as in
    sagemaker-training 5.1.4 (``mapping.to_env_vars``).
    """
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


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


class Sources:
    """The environment and the configuration files of one container.

    Args:
        environ: the environment.
        directory: the directory of SageMaker's configuration files.
        faults: collects what cannot be read or parsed.
    """

    def __init__(self, environ: Mapping[str, str], directory: str, faults: Faults) -> None:
        self.environ = environ
        self._directory = directory
        self._faults = faults

    def variable(self, name: str) -> Optional[Found]:
        """Return a variable, or ``None`` if it is not set or empty.

        sagemaker-training 5.1.4 (``mapping.to_env_vars``) and docker-compose set variables without
        a value to an empty string.
        """
        text = self.environ.get(name)
        return Found(text, name, name) if text else None

    def prefixed(self, prefix: str) -> Iterator[Tuple[str, Found]]:
        """Yield the variables with a prefix, sorted, each with its name without the prefix."""
        for name in sorted(self.environ):
            if name.startswith(prefix) and name != prefix:
                yield name[len(prefix) :], Found(self.environ[name], name, name)

    def json(self, name: str, kind: type) -> Optional[Found]:
        """Return a variable parsed as JSON. Its value is ``None`` if it is invalid."""
        if name not in self.environ:
            return None
        return self._parse(Found(self.environ[name], name, name, raw=True), kind)

    def document(self, variable: Optional[str], file: str) -> Dict[str, Found]:
        """Return the members of a JSON object: of the variable, else of the file, else empty."""
        found = self.json(variable, dict) if variable else None
        if found is None:
            found = self._file(file)
        return members(found) if found is not None else {}

    def _file(self, name: str) -> Optional[Found]:
        path = os.path.join(self._directory, name)
        try:
            with open(path, encoding="utf-8", opener=without_waiting) as file:
                text = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._faults.add(f"cannot read {path} ({error.strerror})", None, "a JSON object")
            return None
        except UnicodeDecodeError as error:
            self._faults.add(f"{path} is not UTF-8 (byte {error.start})", None, "a JSON object")
            return None
        return self._parse(Found(text, name, path, raw=True), dict)

    def _parse(self, found: Found, kind: type) -> Found:
        try:
            value = parse(found.value)
        except ValueError as error:
            self._faults.add(f"not valid JSON ({error})", found, _TYPES[kind])
            return Found(None, found.name, found.source)
        if not isinstance(value, kind):
            self._faults.add(f"not {_TYPES[kind]}", found, _TYPES[kind])
            value = None
        return Found(value, found.name, found.source)


def without_waiting(path: str, flags: int) -> int:
    """Open a file, unless it is a FIFO, on which ``open`` would block.

    It is an ``opener`` for ``open``.

    Raises:
        OSError: the file cannot be opened, or is a FIFO.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a FIFO, not a regular file", path)
    return descriptor


def members(found: Found) -> Dict[str, Found]:
    """Return the members of a JSON object, each with its source; empty if it is invalid."""
    return {
        name: Found(value, name, f"{found.source}: {name!r}")
        for name, value in (found.value or {}).items()
    }


def match(known: Iterable[str], name: str) -> List[str]:
    """Return the names that the variable ``SM_<KIND>_<name>`` can stand for.

    This is the name itself if it is known, else all known names with the same spelling, else a new
    name, in lower case if the variable is in capitals.
    """
    known = list(known)
    if name in known:
        return [name]
    same = [other for other in known if spelling(other) == spelling(name)]
    return same or [name.lower() if name.isupper() else name]


def spelling(name: str) -> str:
    """Return a name as SDK 3 spells it in a variable: ``BATCH_SIZE`` for ``batch-size``."""
    return name.upper().replace("-", "_")
