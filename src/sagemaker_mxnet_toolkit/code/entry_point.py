"""What kind of thing the user's entry point is."""

import enum
import os

from sagemaker_mxnet_toolkit.errors import CodeError


class EntryPointKind(enum.Enum):
    """The three kinds that sagemaker-training 5.1.4 tells apart (``_entry_point_type.get``)."""

    PYTHON_PACKAGE = "package"
    """The code directory holds a ``setup.py``: it is installed, and a module of it is run."""
    PYTHON_SCRIPT = "script"
    """A ``.py`` file."""
    COMMAND = "command"
    """Anything else, and every ``.sh`` file: executed."""


def entry_point_kind(code_dir: str, name: str) -> EntryPointKind:
    """Tell what an entry point is, once the code is in its place.

    Args:
        code_dir: the code directory.
        name: the entry point, relative to it.
    """
    if name.endswith(".sh"):
        return EntryPointKind.COMMAND
    if os.path.exists(os.path.join(code_dir, "setup.py")):
        return EntryPointKind.PYTHON_PACKAGE
    return EntryPointKind.PYTHON_SCRIPT if name.endswith(".py") else EntryPointKind.COMMAND


def make_executable(code_dir: str, name: str) -> None:
    """Let everybody who may read a command's file execute it; archives often lose that bit.

    Raises:
        CodeError: when the file cannot be executed, and that cannot be changed.
    """
    path = os.path.join(code_dir, name)
    try:
        mode = os.stat(path).st_mode
        if not os.access(path, os.X_OK):
            os.chmod(path, mode | (mode & 0o444) >> 2)
    except OSError as error:
        raise CodeError(
            f"the entry point {path} cannot be executed: {error.strerror}; "
            f"expected a file with execute permission: run 'chmod +x {name}' at its source"
        ) from error
