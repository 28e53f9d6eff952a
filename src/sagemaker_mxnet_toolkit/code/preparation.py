"""Checks what the user's code needs before it runs: a fetch, an installation, execute permission.

Child processes fetch and install.
"""

import enum
import os
from typing import Optional

from sagemaker_mxnet_toolkit.failure import CodeError

REQUIREMENTS = "requirements.txt"
"""Name of the file in the code directory, as in sagemaker-training 5.1.4."""


class EntryPointKind(enum.Enum):
    """The kinds of entry points, as in sagemaker-training 5.1.4 (``_entry_point_type.get``)."""

    PYTHON_PACKAGE = "package"
    """The code directory contains ``setup.py``: install it, and run a module of the package."""
    PYTHON_SCRIPT = "script"
    """A ``.py`` file."""
    COMMAND = "command"
    """A ``.sh`` file or any other file: execute it."""


def entry_point_kind(code_dir: str, name: str) -> EntryPointKind:
    """Return the kind of an entry point. The code must have been fetched."""
    if name.endswith(".sh"):
        return EntryPointKind.COMMAND
    if os.path.exists(os.path.join(code_dir, "setup.py")):
        return EntryPointKind.PYTHON_PACKAGE
    return EntryPointKind.PYTHON_SCRIPT if name.endswith(".py") else EntryPointKind.COMMAND


def make_executable(code_dir: str, name: str) -> None:
    """Make a command's file executable for all who may read it. Archives often lose that bit.

    Raises:
        CodeError: the file cannot be made executable.
    """
    path = os.path.join(code_dir, name)
    try:
        with open(path, "rb") as file:
            first = file.readline(256)
        if first.startswith(b"#!") and first.endswith(b"\r\n"):
            interpreter = first[2:].strip().decode("utf-8", "replace")
            raise CodeError(
                f"the entry point {path} cannot be executed: it has Windows line endings (CRLF), "
                f"so its interpreter would be {interpreter!r} with a carriage return; expected "
                f"Unix line endings: run 'dos2unix {name}' or \"sed -i 's/\\r$//' {name}\" on the "
                "original file"
            )
        mode = os.stat(path).st_mode
        if not os.access(path, os.X_OK):
            os.chmod(path, mode | (mode & 0o444) >> 2)
    except OSError as error:
        raise CodeError(
            f"the entry point {path} cannot be executed: {error.strerror}; "
            f"expected a file with execute permission: run 'chmod +x {name}' on the original file"
        ) from error


def fetch_needed(module_dir: str, code_dir: str) -> bool:
    """Return whether the code has to be fetched into the code directory."""
    return os.path.realpath(module_dir) != os.path.realpath(code_dir)


def install_needed(code_dir: str, entry_point: Optional[str] = None) -> bool:
    """Return whether there may be something to install."""
    requirements = os.path.exists(os.path.join(code_dir, REQUIREMENTS))
    return requirements or is_package(code_dir, entry_point)


def is_package(code_dir: str, entry_point: Optional[str]) -> bool:
    """Return whether the entry point is a module of a package, which must be installed."""
    if entry_point is None:
        return False
    return entry_point_kind(code_dir, entry_point) is EntryPointKind.PYTHON_PACKAGE
