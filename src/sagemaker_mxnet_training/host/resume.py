"""The checkpoint that a job goes on from: chosen on the first host, before the roles start.

Scripts that use ``checkpoints`` get its name in ``SAGEMAKER_MXNET_RESUME``, the same on all hosts.
"""

import contextlib
import os
import selectors
from typing import Callable, Mapping, Optional

from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.background import BackgroundCall
from sagemaker_mxnet_toolkit.settings.variables import RESUME
from sagemaker_mxnet_training.config.job import Job


class Resume:
    """Chooses the newest checkpoint that is whole.

    Where ``RESUME`` says what the job goes on from, or that it begins afresh, only checkpoints that
    the job has written itself come before that.

    Args:
        job: the job.
        log: told of damaged checkpoints.
        selector: the supervisor's.
    """

    def __init__(self, job: Job, log: Log, selector: selectors.BaseSelector) -> None:
        self._directory = job.checkpoint_dir
        self._told = job.environ.get(RESUME, "")
        self._log = log
        self._selector = selector
        self._first_written: Optional[str] = None

    def on_event(self, event: Mapping[str, object]) -> None:
        """Take note of what the script reports: where checkpoints are, and each that is written."""
        directory, name = event.get("directory"), event.get("file")
        if isinstance(directory, str):
            self._directory = directory
        if isinstance(name, str) and self._first_written is None:
            self._first_written = name

    def choose(self, on_chosen: Callable[[str], None]) -> None:
        """Choose, beside the loop.

        All bytes are read: for many gigabytes that takes a while.

        Args:
            on_chosen: called once with the file's name; where there is none, with what ``RESUME``
                says, or an empty text.
        """
        own = self._first_written
        if not _has_candidates(self._directory) or (self._told and own is None):
            on_chosen(self._told)
            return
        # Jobs without checkpoints, which are the most, have no use for it.
        from sagemaker_mxnet_training.checkpoints import catalog  # noqa: PLC0415

        since = own if self._told else None
        directory = self._directory

        def on_done(call: BackgroundCall) -> None:
            on_chosen(self._result(call))

        BackgroundCall(lambda: catalog.newest_whole(directory, since), self._selector, on_done)

    def _result(self, call: BackgroundCall) -> str:
        try:
            entry, damaged = call.result()
        except OSError as error:
            text = f"cannot look for checkpoints in {self._directory}: {error}"
            self._log.warning("entrypoint", text)
            return self._told
        for each in damaged:
            self._log.warning("entrypoint", f"{each.name} is damaged and not used: {each.reason}")
        return self._told if entry is None else str(entry.name)


def _has_candidates(directory: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return any(entry.name.startswith("checkpoint-") for entry in entries)
    return False
