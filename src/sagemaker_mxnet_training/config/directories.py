"""The directories that a job writes to."""

import os
from typing import NamedTuple, Optional

from sagemaker_mxnet_toolkit.settings.sources import Sources
from sagemaker_mxnet_toolkit.settings.validation import Validator


class Directories(NamedTuple):
    """Absolute paths, as in ``Job``: model, output, its data, uploads meanwhile, checkpoints."""

    model: str
    output: str
    data: str
    intermediate: str
    checkpoints: str


def read(sources: Sources, base: str, check: Validator) -> Directories:
    """Return the directories; one that cannot be written to is a fault.

    Args:
        sources: has the ``SM_*_DIR`` variables.
        base: the base directory, which holds the defaults.
        check: gets the faults.
    """

    def path(name: str, default: str) -> str:
        return check.path(sources.variable(name), default)

    output = path("SM_OUTPUT_DIR", os.path.join(base, "output"))
    found = Directories(
        model=path("SM_MODEL_DIR", os.path.join(base, "model")),
        output=output,
        data=path("SM_OUTPUT_DATA_DIR", os.path.join(output, "data")),
        intermediate=path("SM_OUTPUT_INTERMEDIATE_DIR", os.path.join(output, "intermediate")),
        checkpoints=path("SM_CHECKPOINT_DIR", os.path.join(base, "checkpoints")),
    )
    written = {
        "SM_MODEL_DIR": found.model,
        "SM_OUTPUT_DIR": found.output,
        "SM_OUTPUT_DATA_DIR": found.data,
    }
    for name, directory in written.items():
        problem = check_writable(directory)
        if problem:
            check.faults.add(f"{name}: {problem}")
    return found


def check_writable(path: str) -> Optional[str]:
    """Return why nothing can be written to a directory, or ``None`` if it can.

    The directory need not exist yet; nothing is created to find out. ``os.access`` alone says yes
    to root on everything, and ``statvfs`` alone does not know permissions.
    """
    there = path
    while not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    expected = "expected a directory that can be written to: mount one, or name another"
    if not os.path.isdir(there):
        return f"{path} cannot be written: {there} is not a directory; {expected}"
    try:
        read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    except OSError as error:
        return f"{path} cannot be written: {there}: {error.strerror}; {expected}"
    if read_only:
        return f"{path} cannot be written: {there} is on a read-only file system; {expected}"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{path} cannot be written: user {os.geteuid()} may not write to {there}; {expected}"
    return None
