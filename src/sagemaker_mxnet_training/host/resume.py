"""The checkpoint that a job goes on from: chosen on the first host, before the roles start.

Scripts that use ``checkpoints`` get its name in ``SAGEMAKER_MXNET_RESUME``, the same on all hosts.
"""

import contextlib
import os
import selectors
from typing import Callable

from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.background import BackgroundCall


def choose(
    directory: str,
    log: Log,
    selector: selectors.BaseSelector,
    on_chosen: Callable[[str], None],
) -> None:
    """Choose the newest checkpoint of a directory that is whole, beside the loop.

    All bytes are read: for many gigabytes that takes a while.

    Args:
        directory: the directory of checkpoints.
        log: told of damaged ones.
        selector: the supervisor's.
        on_chosen: called once with the file's name; with an empty text where there is none.
    """
    if not _has_candidates(directory):
        on_chosen("")
        return
    # Jobs without checkpoints, which are the most, have no use for it.
    from sagemaker_mxnet_training.checkpoints import catalog  # noqa: PLC0415

    def on_done(call: BackgroundCall) -> None:
        name = ""
        try:
            entry, damaged = call.result()
        except OSError as error:
            log.warning("entrypoint", f"cannot look for checkpoints in {directory}: {error}")
        else:
            for each in damaged:
                log.warning("entrypoint", f"{each.name} is damaged and not used: {each.reason}")
            name = "" if entry is None else entry.name
        on_chosen(name)

    BackgroundCall(lambda: catalog.newest_whole(directory), selector, on_done)


def _has_candidates(directory: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return any(entry.name.startswith("checkpoint-") for entry in entries)
    return False
