"""Finds a model's script, and the code around it, in the model's directory."""

import os
from dataclasses import dataclass
from typing import Iterator, List, Optional

DEFAULT_PROGRAM = "inference.py"

_NOT_CODE = ("lib", "__pycache__")
"""Directories of the code without scripts. The SDK puts ``dependencies`` into the first."""


@dataclass(frozen=True)
class CodeLocation:
    """Where a model and its code are.

    Attributes:
        model_dir: the directory that the script's functions get.
        code_dir: the directory of the code; it need not exist.
        script: the path of the script; None without one.
    """

    model_dir: str
    code_dir: str
    script: Optional[str] = None


def locate(model_dir: str, code_dir: str = "", program: str = "") -> CodeLocation:
    """Find the script of a model.

    These places are tried in order:

    1. ``code_dir``, ``code/`` of the model directory, and the model directory.
    2. The same places one directory deeper, if the model directory has a single subdirectory, as
       ``tar -czf model.tar.gz my_model`` makes it; this is the model directory then.
    3. All directories below the code directories, if ``program`` is a file name, as the SageMaker
       SDK sends it, and only one file has this name.
    4. ``program`` itself, if it is an absolute path.

    Args:
        model_dir: the model's directory.
        code_dir: the directory of the code, if it is apart from the model.
        program: a file (``serve.py``, ``pkg/serve.py``) or a module (``serve``, ``pkg.serve``). The
            SDK's local mode sends an absolute path of the host, of which only the file name is
            used. Empty: ``inference.py``.
    """
    model_dir = os.path.abspath(model_dir)
    code_dir = code_dir and os.path.abspath(code_dir)
    roots = list(_roots(model_dir))
    for root in roots:
        code = os.path.join(root, "code")
        for folder in filter(None, (code_dir, code, root)):
            for name in _names(program):
                path = os.path.normpath(os.path.join(folder, name))
                if path.startswith(folder + os.sep) and os.path.isfile(path):
                    within = path.startswith(code + os.sep)
                    return CodeLocation(root, code if within else folder, path)
    for root in roots:
        for folder in filter(None, (code_dir, os.path.join(root, "code"))):
            below = found_below(folder, program)
            if len(below) == 1:
                return CodeLocation(root, folder, below[0])
    path = _plain(program)
    if os.path.isabs(path) and os.path.isfile(path):
        return CodeLocation(model_dir, code_dir or os.path.dirname(path), path)
    return CodeLocation(model_dir, code_dir or os.path.join(roots[-1], "code"))


def found_below(folder: str, program: str) -> List[str]:
    """Return the files below a folder that have the name of a program given without a directory."""
    path = _plain(program)
    if not path or (os.path.dirname(path) and not os.path.isabs(path)):
        return []
    found = []
    for parent, directories, files in os.walk(folder):
        directories[:] = [
            each for each in sorted(directories) if each not in _NOT_CODE and each[0] != "."
        ]
        names = (os.path.basename(path), os.path.basename(path) + ".py")
        found += [os.path.join(parent, name) for name in names if name in files]
    return found


def is_module(program: str) -> bool:
    """Return whether a program may be the name of a module, such as ``pkg.serve``."""
    return bool(program) and "/" not in program and not program.endswith(".py")


def _roots(model_dir: str) -> Iterator[str]:
    """Yield the model's directory, and its single subdirectory, if it contains nothing else."""
    yield model_dir
    try:
        names = [name for name in os.listdir(model_dir) if not name.startswith(".")]
    except OSError:
        return
    # The SDK's local mode leaves the archive beside its contents.
    names = [name for name in names if not name.endswith(".tar.gz") and name != "lost+found"]
    if len(names) == 1 and names != ["code"] and os.path.isdir(os.path.join(model_dir, names[0])):
        yield os.path.join(model_dir, names[0])


def _plain(program: str) -> str:
    """Return a program without ``file://``, and a Windows path with slashes."""
    path = program[len("file://") :] if program.startswith("file://") else program
    return os.path.normpath(path.replace("\\", "/")) if path else ""


def _names(program: str) -> List[str]:
    """Return the paths to try, relative to a directory of code."""
    path = _plain(program)
    if not path:
        return [DEFAULT_PROGRAM]
    if is_module(path):
        module = path.replace(".", "/")
        return [f"{module}.py", f"{module}/__init__.py", path]
    return [path, os.path.basename(path)]
