"""Where the configuration comes from: variables and files, read and parsed.

Nothing is checked here except that it can be read and is JSON of the expected type.
"""

import os
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.settings.faults import Faults, Found
from sagemaker_mxnet_toolkit.settings.json_text import parse

_TYPES = {dict: "a JSON object", list: "a JSON list", bool: "true or false"}


class Sources:
    """The environment and the configuration files of one container.

    Args:
        environ: the environment.
        directory: where SageMaker's configuration files are.
        faults: gets a fault for everything that cannot be read or parsed.
    """

    def __init__(self, environ: Mapping[str, str], directory: str, faults: Faults) -> None:
        self.environ = environ
        self._directory = directory
        self._faults = faults

    def variable(self, name: str) -> Optional[Found]:
        """Return a variable's text; ``None`` if it is not set, or empty.

        sagemaker-training 5.1.4 writes an empty text for what it does not know
        (``mapping.to_env_vars``), and so does docker-compose.
        """
        text = self.environ.get(name)
        return Found(text, name, name) if text else None

    def prefixed(self, prefix: str) -> Iterator[Tuple[str, Found]]:
        """Yield the variables with a prefix, sorted: the rest of the name, and the text."""
        for name in sorted(self.environ):
            if name.startswith(prefix) and name != prefix:
                yield name[len(prefix) :], Found(self.environ[name], name, name)

    def json(self, name: str, kind: type) -> Optional[Found]:
        """Return a variable's JSON value, which is ``None`` if it has a fault."""
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
            self._faults.add(f"cannot read {path} ({error.strerror})", None, "a JSON object")
            return None
        except UnicodeDecodeError as error:
            self._faults.add(f"not UTF-8: {path} (byte {error.start})", None, "a JSON object")
            return None
        return self._parse(Found(text, name, path, raw=True), dict)

    def _parse(self, found: Found, kind: type) -> Found:
        try:
            value = parse(found.value)
        except ValueError as error:
            self._faults.add(f"not JSON, {error}", found, _TYPES[kind])
            return Found(None, found.name, found.place)
        if not isinstance(value, kind):
            self._faults.add(f"not {_TYPES[kind]}", found, _TYPES[kind])
            value = None
        return Found(value, found.name, found.place)


def members(found: Found) -> Dict[str, Found]:
    """Return the members of a JSON object, each with its place; none if it has a fault."""
    return {
        name: Found(value, name, f"{found.place}: {name!r}")
        for name, value in (found.value or {}).items()
    }


def match(known: Iterable[str], name: str) -> List[str]:
    """Return the names that the variable ``SM_<KIND>_<name>`` can mean.

    That is the name itself if it is known, or else all known names that a variable spells like it,
    or else a new name, in lower case if the variable's is in capitals.
    """
    known = list(known)
    if name in known:
        return [name]
    same = [other for other in known if spelling(other) == spelling(name)]
    return same or [name.lower() if name.isupper() else name]


def spelling(name: str) -> str:
    """Return a name as a variable spells it: SDK 3 writes ``BATCH_SIZE`` for ``batch-size``."""
    return name.upper().replace("-", "_")
