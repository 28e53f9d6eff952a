"""The user's code: where it comes from, and which program in it is run."""

import os
import stat
from typing import Optional, Tuple

from sagemaker_mxnet_toolkit.errors import CodeError
from sagemaker_mxnet_toolkit.settings.faults import Found
from sagemaker_mxnet_toolkit.settings.sources import Sources
from sagemaker_mxnet_toolkit.settings.validation import Validator, text
from sagemaker_mxnet_training.config.hyperparameters import Hyperparameters

_PROGRAM = "the name of a file, relative to the code directory, such as train.py"
_SOURCE = "a directory, a tar.gz or s3://bucket/key"


def read(
    sources: Sources, parameters: Hyperparameters, base: str, check: Validator
) -> Tuple[str, str]:
    """Return the entry point and where the code comes from, as ``Job`` has them.

    Args:
        sources: has the variables, which take precedence.
        parameters: has ``sagemaker_program`` and ``sagemaker_submit_directory``.
        base: the base directory.
        check: gets the faults; that the program is missing is one if the code is here already.
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
            "no entry point is named",
            None,
            f"{_PROGRAM}: set the hyperparameter sagemaker_program or SM_USER_ENTRY_POINT",
        )
        return ""
    name = check.value(found, text(_PROGRAM), "")
    if not name:
        return ""
    if os.path.isabs(name):
        problem = "an entry point with an absolute path"
    elif ".." in name.split("/"):
        problem = "an entry point that may be outside the code directory"
    elif name.startswith("-"):
        problem = "an entry point that would be read as an option"
    elif not name.isprintable():
        problem = "an entry point with a character that cannot be printed"
    elif os.path.normpath(name) == ".":
        problem = "an entry point that is a directory"
    else:
        return os.path.normpath(name)
    check.faults.add(problem, found, _PROGRAM)
    return ""


def _module_dir(found: Optional[Found], base: str, check: Validator) -> str:
    code_dir = os.path.join(base, "code")
    if found is None:
        # Where SageMaker puts the code for network isolation (SDK 2.257, vpc_utils and
        # estimator: a channel named "code").
        isolated = os.path.join(base, "input", "data", "code", "sourcedir.tar.gz")
        return isolated if os.path.isfile(isolated) and _is_empty(code_dir) else code_dir
    place = check.value(found, text(_SOURCE), code_dir)
    scheme, separator, rest = place.partition("://")
    if separator:
        bucket, _, key = rest.partition("/")
        if scheme.lower() != "s3" or not bucket or not key:
            check.faults.add("not a source of code", found, _SOURCE)
        return f"s3://{rest}"
    if not os.path.exists(place) and os.path.abspath(place) != code_dir:
        check.faults.add("code that does not exist", found, _SOURCE)
    return os.path.abspath(place)


def _is_empty(directory: str) -> bool:
    try:
        return not os.listdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def check_entry_point(code_dir: str, name: str) -> None:
    """Check that the user's program is in the code directory, once the code is.

    The module of a package (``setup.py``) need not be a file of that name: that it exists shows
    only when the package is installed.

    Args:
        code_dir: the directory that holds the user's code.
        name: the entry point, relative to it.

    Raises:
        CodeError: it is missing, not a file, or outside the code directory.
    """
    what = "expected the user's program, named relative to the code directory"
    todo = "set the hyperparameter sagemaker_program (or SM_USER_ENTRY_POINT)"
    path = os.path.join(code_dir, name)
    inside = os.path.realpath(code_dir)
    if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise CodeError(f"the entry point {name!r} is outside {code_dir}; {what}: {todo}")
    if not name.endswith(".sh") and os.path.exists(os.path.join(code_dir, "setup.py")):
        return
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        there = _listing(code_dir)
        raise CodeError(
            f"the entry point {name!r} cannot be found in {code_dir} ({error.strerror}; {there}); "
            f"{what}: {todo}"
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise CodeError(f"the entry point {name!r} in {code_dir} is {kind}; {what}: {todo}")
    if not os.access(path, os.R_OK):
        raise CodeError(f"the entry point {path} cannot be read; expected read permission for it")


def _listing(directory: str) -> str:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        return f"the directory cannot be listed: {error.strerror}"
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"there is {shown}" if names else "it is empty"
