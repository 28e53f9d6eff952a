"""Sources of the configuration: environment variables and files.

They are read and parsed here; only the type of JSON values is checked.
"""

import errno
import os
import stat
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.settings.faults import Faults, Found
from sagemaker_mxnet_toolkit.settings.json_text import parse

_TYPES = {dict: "a JSON object", list: "a JSON list", bool: "true or false"}


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
