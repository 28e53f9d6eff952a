"""Waits for the processes of a host to exit, after all workers have finished."""

import signal
import time
from typing import Callable, List

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.cluster.coordinator import PROGRESS_PERIOD
from sagemaker_mxnet_training.host.attempt import KVSTORE, Attempt

TERMINATE_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for a process that does not exit."""

UNUSED_GRACE = 1.0
"""Seconds in which scheduler and servers must exit if no worker has ever connected to them."""

_POLL = 0.02


class Drain:
    """Waits for the roles to exit, then for uploads to S3, then for remaining processes.

    Args:
        timeout: seconds in which the roles must exit by themselves.
        on_empty: called once, when no process is left.
    """

    def __init__(
        self,
        attempt: Attempt,
        table: ProcessTable,
        log: Log,
        timeout: float,
        on_empty: Callable[[], None],
    ) -> None:
        self._attempt = attempt
        self._table = table
        self._log = log
        self._on_empty = on_empty
        self._deadline = time.monotonic() + timeout
        self._unused = False
        self._asked = False
        self._empty = False
        self._log_at = 0.0  # when to log the uploads next
        if attempt.stop is not None:
            table.stop(table.living(*KVSTORE), signal.SIGTERM, TERMINATE_GRACE)
        else:
            attempt.check_kvstore_use()

    def tick(self, now: float) -> float:
        """Check deadlines; return when to call again (monotonic, seconds)."""
        if self._empty:
            return now + 1.0
        left = self._table.living(Role.WORKER, *KVSTORE)
        if left:
            return self._await_roles(left, now)
        rendezvous = self._table.living(Role.RENDEZVOUS)
        if rendezvous:  # it does not exit by itself
            self._table.stop(rendezvous, signal.SIGTERM, TERMINATE_GRACE)
        uploads = self._table.living(Role.SYNC)
        for child in uploads:
            child.close_stdin()
        if uploads and now >= self._log_at:
            if self._log_at:
                self._log("entrypoint", "waiting for uploads to S3")
            self._log_at = now + PROGRESS_PERIOD
        if uploads or not self._table.sweep(now, TERMINATE_GRACE):
            return now + _POLL
        self._empty = True
        self._on_empty()
        return now

    def _await_roles(self, left: List[Child], now: float) -> float:
        workers = self._table.living(Role.WORKER)
        if self._attempt.stop is not None:
            if not workers:  # they may have been killed before they could disconnect
                self._table.stop(left, signal.SIGTERM, TERMINATE_GRACE)
            return now + 0.1
        self._attempt.check_kvstore_use()
        if not (workers or self._attempt.kvstore_used or self._unused):
            # A short job may have used it between two checks; its servers then exit.
            self._unused = True
            self._deadline = min(self._deadline, now + UNUSED_GRACE)
        if now < self._deadline:
            return self._deadline
        if not self._asked:
            self._asked = True
            if self._unused and not self._attempt.kvstore_used:
                text = "no worker used the kvstore; stopping it"
            else:
                names = ", ".join(child.spec.name for child in left)
                text = f"stopping processes that did not exit: {names}"
            self._log("entrypoint", text)
            self._table.stop(left, signal.SIGTERM, TERMINATE_GRACE)
        return now + 0.1
