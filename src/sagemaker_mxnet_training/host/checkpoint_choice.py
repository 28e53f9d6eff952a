"""Selects the checkpoint that a job resumes from, on the first host, before the roles start.

Scripts that use ``checkpoints`` get its name in ``SAGEMAKER_MXNET_RESUME``, the same on all hosts.
"""

import contextlib
import os
import selectors
from typing import Callable, Mapping, Optional

from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.background import BackgroundCall
from sagemaker_mxnet_toolkit.settings.variables import RESUME, VERIFIED
from sagemaker_mxnet_training.config.job import Job


class CheckpointChoice:
    """Selects the newest valid checkpoint.

    If ``RESUME`` is set to a checkpoint or to a fresh start, only checkpoints that the job itself
    has written take precedence over it.

    Args:
        log: logs damaged checkpoints.

    Attributes:
        variables: environment variables that tell the script which file was verified here.
    """

    def __init__(self, job: Job, log: Log, selector: selectors.BaseSelector) -> None:
        self._directory = job.checkpoint_dir
        self._requested = job.environ.get(RESUME, "")
        self._log = log
        self._selector = selector
        self._first_written: Optional[str] = None
        self.variables: Mapping[str, str] = {}

    def on_event(self, event: Mapping[str, object]) -> None:
        """Record the script's directory, and the first checkpoint that it writes."""
        directory, name = event.get("directory"), event.get("file")
        if isinstance(directory, str):
            self._directory = directory
        if isinstance(name, str) and self._first_written is None:
            self._first_written = name

    def choose(self, on_chosen: Callable[[str], None]) -> None:
        """Select a checkpoint in a thread, since the file is read completely.

        Args:
            on_chosen: called once with the file's name, or with the value of ``RESUME`` or an empty
                string if there is no checkpoint.
        """
        own, self.variables = self._first_written, {}
        if not _has_candidates(self._directory) or (self._requested and own is None):
            on_chosen(self._requested)
            return
        # Most jobs have no checkpoints and do not need this import.
        from sagemaker_mxnet_training.checkpoints import catalog

        since = own if self._requested else None
        directory = self._directory

        def on_done(call: BackgroundCall) -> None:
            on_chosen(self._result(call))

        BackgroundCall(lambda: catalog.newest_whole(directory, since), self._selector, on_done)

    def _result(self, call: BackgroundCall) -> str:
        try:
            entry, damaged = call.result()
        except OSError as error:
            text = f"cannot search {self._directory} for checkpoints: {error}"
            self._log.warning("entrypoint", text)
            return self._requested
        for each in damaged:
            self._log.warning("entrypoint", f"skipping damaged {each.name}: {each.reason}")
        if entry is None:
            if damaged and not self._requested:
                self._log.warning("entrypoint", "there is no other checkpoint; starting afresh")
            return self._requested
        self.variables = {VERIFIED: os.path.join(self._directory, entry.name)}
        return str(entry.name)


def _has_candidates(directory: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return any(entry.name.startswith("checkpoint-") for entry in entries)
    return False
