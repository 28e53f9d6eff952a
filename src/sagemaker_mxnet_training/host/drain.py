"""How the processes of a host leave after all workers have finished."""

import signal
import time
from typing import Callable, List

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.cluster.coordination import PROGRESS_PERIOD
from sagemaker_mxnet_training.host.attempt import KVSTORE, Attempt

TERMINATE_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for a process that keeps a job from ending."""

UNUSED_GRACE = 1.0
"""Seconds that scheduler and servers have to leave when no worker ever connected to them."""

_POLL = 0.02


class Drain:
    """Waits for the roles to leave, then for the copies to S3, then for whatever is left.

    Args:
        attempt: the run that ends.
        table: the processes of this host.
        log: the entrypoint's log.
        timeout: seconds that the roles have to leave by themselves.
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
        self._tell_at = 0.0  # of the copies
        if attempt.stop is not None:
            table.stop(table.living(*KVSTORE), signal.SIGTERM, TERMINATE_GRACE)
        else:
            attempt.check_kvstore_use()

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again (monotonic, seconds)."""
        if self._empty:
            return now + 1.0
        left = self._table.living(Role.WORKER, *KVSTORE)
        if left:
            return self._await_roles(left, now)
        copies = self._table.living(Role.SYNC)
        for child in copies:
            child.close_stdin()
        if copies and now >= self._tell_at:
            if self._tell_at:
                self._log("entrypoint", "waiting for the copies to S3")
            self._tell_at = now + PROGRESS_PERIOD
        if copies or not self._table.sweep(now, TERMINATE_GRACE):
            return now + _POLL
        self._empty = True
        self._on_empty()
        return now

    def _await_roles(self, left: List[Child], now: float) -> float:
        workers = self._table.living(Role.WORKER)
        if self._attempt.stop is not None:
            if not workers:  # which may have been ended before they could say goodbye
                self._table.stop(left, signal.SIGTERM, TERMINATE_GRACE)
            return now + 0.1
        self._attempt.check_kvstore_use()
        if not (workers or self._attempt.kvstore_used or self._unused):
            # So it looks; but a short job may have used it between two looks, and then it leaves.
            self._unused = True
            self._deadline = min(self._deadline, now + UNUSED_GRACE)
        if now < self._deadline:
            return self._deadline
        if not self._asked:
            self._asked = True
            if self._unused and not self._attempt.kvstore_used:
                what = "no worker used the kvstore; ending it"
            else:
                names = ", ".join(child.spec.name for child in left)
                what = f"ending what has not left by itself: {names}"
            self._log("entrypoint", what)
            self._table.stop(left, signal.SIGTERM, TERMINATE_GRACE)
        return now + 0.1
