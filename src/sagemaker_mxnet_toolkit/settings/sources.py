"""Where the configuration comes from: variables and files, read and parsed, each with its place.

Nothing is judged here but whether it can be read and is JSON of the expected kind.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.redaction import (
    is_secret,
    redact_assignments,
    redact_mapping,
    redact_text,
    secrets_in,
)

DEEPEST = 64
"""Levels of nesting that JSON may have; no real configuration comes near it."""

_EXCERPT = 80

_KINDS = {dict: "a JSON object", list: "a JSON list", bool: "true or false"}


@dataclass(frozen=True)
class Found:
    """A value and its place.

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


class Faults:
    """All faults found so far, told only at the end: by then all secrets are known."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = set(secrets)
        self._faults: List[Tuple[str, Optional[Found], str]] = []

    def keep_secret(self, mapping: Mapping[str, Any]) -> None:
        """Never show the secret values of this mapping."""
        self._secrets |= secrets_in(mapping)

    def add(self, problem: str, found: Optional[Found] = None, expected: str = "") -> None:
        """Note one fault: the problem, the value it is about, and what was expected."""
        self._faults.append((problem, found, expected))

    def told(self) -> List[str]:
        """Return each fault as one sentence that any stream can print."""
        sentences = []
        for problem, found, expected in self._faults:
            text = redact_assignments(redact_text(problem, self._secrets))
            if found is not None:
                text += f": {found.shown(self._secrets)} ({found.place})"
            text += f"; expected {expected}" if expected else ""
            sentences.append(text.encode("utf-8", "backslashreplace").decode())
        return sentences


class Sources:
    """The environment and the configuration files of one job.

    Args:
        environ: the environment.
        directory: where SageMaker's configuration files are.
        faults: told about what cannot be read or parsed.
    """

    def __init__(self, environ: Mapping[str, str], directory: str, faults: Faults) -> None:
        self.environ = environ
        self._directory = directory
        self._faults = faults

    def variable(self, name: str) -> Optional[Found]:
        """Return a variable's text; ``None`` where it is not set, or empty.

        sagemaker-training 5.1.4 writes an empty text for what it does not know
        (``mapping.to_env_vars``), and so does docker-compose.
        """
        text = self.environ.get(name)
        return Found(text, name, name) if text else None

    def prefixed(self, prefix: str) -> Iterator[Tuple[str, Found]]:
        """Yield, by name, what follows the prefix in the names of variables, and their texts."""
        for name in sorted(self.environ):
            if name.startswith(prefix) and name != prefix:
                yield name[len(prefix) :], Found(self.environ[name], name, name)

    def json(self, name: str, kind: type) -> Optional[Found]:
        """Return a variable's JSON; its value is ``None`` where it has a fault."""
        if name not in self.environ:
            return None
        return self._parse(Found(self.environ[name], name, name, raw=True), kind)

    def document(self, variable: Optional[str], file: str) -> Dict[str, Found]:
        """Return the members of a JSON object: the variable's, or else the file's, or none."""
        found = self.json(variable, dict) if variable else None
        if found is None:
            found = self._file(file)
        return members(found) if found is not None else {}

    def _file(self, name: str) -> Optional[Found]:
        path = os.path.join(self._directory, name)
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._faults.add(f"cannot be read: {path} ({error.strerror})", None, "a JSON object")
            return None
        except UnicodeDecodeError as error:
            self._faults.add(f"not UTF-8: {path} (byte {error.start})", None, "a JSON object")
            return None
        return self._parse(Found(text, name, path, raw=True), dict)

    def _parse(self, found: Found, kind: type) -> Found:
        try:
            value = parse(found.value)
        except ValueError as error:
            self._faults.add(f"not JSON, {error}", found, _KINDS[kind])
            return Found(None, found.name, found.place)
        if not isinstance(value, kind):
            self._faults.add(f"not {_KINDS[kind]}", found, _KINDS[kind])
            value = None
        return Found(value, found.name, found.place)


def members(found: Found) -> Dict[str, Found]:
    """Return the members of a JSON object, each with its place; none where it has a fault."""
    return {
        name: Found(value, name, f"{found.place}: {name!r}")
        for name, value in (found.value or {}).items()
    }


def parse(text: str) -> Any:
    """Return what a JSON text means.

    Python's ``json`` also takes ``NaN``, ``Infinity`` and 1e999, which no other reader of
    ``SM_HPS`` would understand. They are no JSON here.

    Raises:
        ValueError: when it is no JSON, is nested deeper than ``DEEPEST``, or holds a number that
            is not finite or too large.
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
        raise ValueError("a number that is not finite")
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
    """Return a hyperparameter's value: what its JSON means, or else the text itself."""
    try:
        return parse(text)
    except ValueError:
        return text


def variable_text(value: Any) -> str:
    """Return a value as a variable holds it: text as it is, ``null`` empty, else JSON.

    The form is that of sagemaker-training 5.1.4 (``mapping.to_env_vars``).
    """
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


# Hyperparameters that are the platform's although their names say otherwise
# (sagemaker-training 5.1.4, params.SAGEMAKER_HYPERPARAMETERS).
_PLATFORM = frozenset({"_tuning_objective_metric", "default_user_module_name"})

# Those of the platform's that are no framework parameters (the same tuple).
_NAMED = _PLATFORM | {
    "sagemaker_program",
    "sagemaker_submit_directory",
    "sagemaker_enable_cloudwatch_metrics",
    "sagemaker_region",
    "sagemaker_container_log_level",
    "sagemaker_job_name",
    "sagemaker_s3_output",
}


def is_platform(name: str) -> bool:
    """Tell whether a hyperparameter is the platform's rather than the user's."""
    return name.startswith("sagemaker_") or name in _PLATFORM


def is_framework(name: str) -> bool:
    """Tell whether a platform hyperparameter belongs into ``SM_FRAMEWORK_PARAMS``."""
    return name not in _NAMED


def hyperparameters(sources: Sources, file: str) -> Tuple[Dict[str, Found], Dict[str, Found]]:
    """Return the user's hyperparameters and the platform's, each with its place.

    A whole set in a variable (``SM_HPS``, ``SM_FRAMEWORK_PARAMS``) takes the place of the file's
    set; ``SM_HP_<name>`` then changes or adds a single one. The platform's may be in any of them.

    Args:
        sources: where to look.
        file: name of the file that holds both sets.
    """
    user: Dict[str, Found] = {}
    platform: Dict[str, Found] = {}
    for name, found in sources.document(None, file).items():
        value = decode(found.value) if isinstance(found.value, str) else found.value
        (platform if is_platform(name) else user)[name] = Found(value, name, found.place)
    whole = sources.json("SM_HPS", dict)
    framework = sources.json("SM_FRAMEWORK_PARAMS", dict)
    if whole is not None:
        user = {}
    if framework is not None:
        platform = {name: found for name, found in platform.items() if not is_framework(name)}
    for name, found in members(whole).items() if whole else ():
        (platform if is_platform(name) else user)[name] = found
    platform.update(members(framework) if framework else {})
    for name, found in sources.prefixed("SM_HP_"):
        _change((platform if is_platform(name.lower()) else user), name, found)
    return user, platform


def _change(values: Dict[str, Found], name: str, found: Found) -> None:
    """Apply one ``SM_HP_<name>``. Variables are spelled in capitals, hyperparameters seldom."""
    same = [known for known in values if _spelling(known) == _spelling(name)]
    if any(variable_text(values[known].value) == found.value for known in same):
        # It only repeats what SM_HPS says with its type: the text "5" is to stay a text.
        return
    for known in match(values, name):
        values[known] = Found(decode(found.value), known, found.place)


def match(known: Iterable[str], name: str) -> List[str]:
    """Return the names that ``SM_<KIND>_<name>`` can mean: itself, known ones, a new one."""
    known = list(known)
    if name in known:
        return [name]
    same = [other for other in known if _spelling(other) == _spelling(name)]
    return same or [name.lower() if name.isupper() else name]


def _spelling(name: str) -> str:
    """Return a name as a variable may spell it: SDK 3 writes ``BATCH_SIZE`` for ``batch-size``."""
    return name.upper().replace("-", "_")
