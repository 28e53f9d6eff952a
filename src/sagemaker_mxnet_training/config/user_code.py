"""The source of the user's code, and its entry point."""

import os
import stat
from typing import Optional, Tuple

from sagemaker_mxnet_toolkit.failure import CodeError
from sagemaker_mxnet_toolkit.settings.sources import Found, Sources
from sagemaker_mxnet_toolkit.settings.validation import Validator, string
from sagemaker_mxnet_training.config.hyperparameters import Hyperparameters

_PROGRAM = "the path of a file relative to the code directory, such as train.py"
_SOURCE = "a directory, a tar.gz or s3://bucket/key"


def read(
    sources: Sources, parameters: Hyperparameters, base: str, check: Validator
) -> Tuple[str, str]:
    """Return the entry point and the source of the code, as in ``Job``.

    Args:
        sources: provides the variables, which take precedence.
        parameters: provides ``sagemaker_program`` and ``sagemaker_submit_directory``.
        base: the base directory.
        check: collects faults, including a missing program if the code is a local directory.
    """
    program = _entry_point(
        sources.variable("SM_USER_ENTRY_POINT")
        or sources.variable("SAGEMAKER_PROGRAM")
        or parameters.parameter("program"),
        check,
    )
    source = _module_dir(
        sources.variable("SM_MODULE_DIR")
        or parameters.parameter("submit_directory")
        or sources.variable("SAGEMAKER_SUBMIT_DIRECTORY"),
        base,
        check,
    )
    if program and (os.path.isdir(source) or source == os.path.join(base, "code")):
        try:
            check_entry_point(source, program)
        except CodeError as error:
            check.faults.add(str(error))
    return program, source


def _entry_point(found: Optional[Found], check: Validator) -> str:
    if found is None:
        check.faults.add(
            "the entry point is not set",
            None,
            f"{_PROGRAM}: set the hyperparameter sagemaker_program or SM_USER_ENTRY_POINT "
            "(to run a script on this machine: sagemaker-mxnet-training local SCRIPT)",
        )
        return ""
    name = check.value(found, string(_PROGRAM), "")
    if not name:
        return ""
    if os.path.isabs(name):
        problem = "the entry point is an absolute path"
    elif ".." in name.split("/"):
        problem = "the entry point may be outside the code directory"
    elif name.startswith("-"):
        problem = "the entry point would be parsed as an option"
    elif not name.isprintable():
        problem = "the entry point contains an unprintable character"
    elif os.path.normpath(name) == ".":
        problem = "the entry point is a directory"
    elif name.endswith(".ipynb"):
        problem = "the entry point is a notebook; export it as a script"
    else:
        return os.path.normpath(name)
    check.faults.add(problem, found, _PROGRAM)
    return ""


def _module_dir(found: Optional[Found], base: str, check: Validator) -> str:
    code_dir = os.path.join(base, "code")
    if found is None:
        # SageMaker's location of the code with network isolation (SDK 2.257, vpc_utils and
        # estimator: a channel named "code").
        isolated = os.path.join(base, "input", "data", "code", "sourcedir.tar.gz")
        return isolated if os.path.isfile(isolated) and _is_empty(code_dir) else code_dir
    source = check.value(found, string(_SOURCE), code_dir)
    scheme, separator, rest = source.partition("://")
    if separator:
        bucket, _, key = rest.partition("/")
        if scheme.lower() != "s3" or not bucket or not key:
            check.faults.add("not a source of code", found, _SOURCE)
        return f"s3://{rest}"
    if not os.path.exists(source) and os.path.abspath(source) != code_dir:
        check.faults.add("the code does not exist", found, _SOURCE)
    return os.path.abspath(source)


def _is_empty(directory: str) -> bool:
    try:
        return not os.listdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def check_entry_point(code_dir: str, name: str) -> None:
    """Check that the user's program exists in the code directory.

    The module of a package (``setup.py``) is not checked, since it may be anywhere in the package.

    Raises:
        CodeError: it is missing, not a file, or outside the code directory.
    """
    expected = (
        "expected the path of the user's program relative to the code directory: set the "
        "hyperparameter sagemaker_program (or SM_USER_ENTRY_POINT)"
    )
    path = os.path.join(code_dir, name)
    inside = os.path.realpath(code_dir)
    if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise CodeError(f"the entry point {name!r} is outside {code_dir}; {expected}")
    if not name.endswith(".sh") and os.path.exists(os.path.join(code_dir, "setup.py")):
        return
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        listing = _listing(code_dir)
        raise CodeError(
            f"the entry point {name!r} cannot be found in {code_dir} ({error.strerror}; "
            f"{listing}); {expected}"
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise CodeError(f"the entry point {name!r} in {code_dir} is {kind}; {expected}")
    if not os.access(path, os.R_OK):
        raise CodeError(f"the entry point {path} cannot be read; expected read permission")


def _listing(directory: str) -> str:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        return f"the directory cannot be listed: {error.strerror}"
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"the directory contains {shown}" if names else "the directory is empty"
