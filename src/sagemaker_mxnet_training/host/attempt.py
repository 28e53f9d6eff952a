"""One attempt: a run of the job's roles on a host, until they have drained.

A restart creates a new one.
"""

import signal
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.code.preparation import (
    EntryPointKind,
    entry_point_kind,
    make_executable,
)
from sagemaker_mxnet_toolkit.failure import FailureKind, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import process
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.cluster.coordinator import PROGRESS_PERIOD, Coordinator
from sagemaker_mxnet_training.cluster.events import HostState, Start, Stop
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import plan
from sagemaker_mxnet_training.host.timeline import HostPhase, Timeline

BARRIER_GRACE = 1.0
"""Seconds after which a finished worker is killed in MXNet's exit barrier, during a stop."""

TERMINATE_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for a process that does not exit."""

UNUSED_GRACE = 1.0
"""Seconds in which scheduler and servers must exit if no worker has ever connected to them."""

_POLL = 0.02

KVSTORE = (Role.SCHEDULER, Role.SERVER)

ROLES = (Role.WORKER, *KVSTORE, Role.RENDEZVOUS)
"""Roles that are started in each attempt."""


@dataclass(frozen=True)
class CheckpointFile:
    """A complete checkpoint: its name, its step, and its time (monotonic, seconds)."""

    name: str
    step: int
    when: float


class Attempt:
    """The state of one attempt.

    Args:
        coordinator: gets reports of this host's progress.
        number: number of the attempt, from 1.

    Attributes:
        number: number of the attempt, from 1.
        stop: the request to stop, if there was one.
        failed: whether the attempt has failed and another one follows, so that it is ignored.
        finished: whether it was reported that the script has finished.
        kvstore_used: whether a worker is known to have used the kvstore.
        checkpointing: whether this host's script uses checkpoints.
        checkpoint: the last checkpoint that it has written.
        specs: the processes that were started.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        timeline: Timeline,
        table: ProcessTable,
        coordinator: Coordinator,
        number: int = 1,
    ) -> None:
        self._job = job
        self._log = log
        self._timeline = timeline
        self._table = table
        self._coordinator = coordinator
        self._starting: Set[Child] = set()  # roles that have not reported "started"
        self._workers: List[Child] = []
        self._ended_at: Dict[Child, float] = {}  # when scripts reported their end
        self._statuses: Dict[Child, int] = {}  # exit statuses of scripts, in the order of their end
        self._done: Set[Child] = set()  # workers that have finished
        self.number = number
        self.checkpointing = False
        self.checkpoint: Optional[CheckpointFile] = None
        self.specs: Tuple[ProcessSpec, ...] = ()
        self.stop: Optional[Stop] = None
        self.failed = False
        self.finished = False
        self.kvstore_used = False

    @property
    def worker_status(self) -> Optional[int]:
        """Exit status of the script, in the shell's convention; ``None`` while it runs.

        With several workers it is that of the first one that failed.
        """
        statuses = [self._own_status(child, status) for child, status in self._statuses.items()]
        return next(filter(None, statuses), 0) if statuses else None

    def start(
        self,
        order: Start,
        start_process: Callable[[ProcessSpec], Child],
        variables: Mapping[str, str],
    ) -> None:
        """Start the roles of this host.

        Args:
            order: the order, with the rendezvous and the checkpoint to resume from.
            start_process: starts one process.
            variables: variables for Horovod's workers on this host.
        """
        kind = entry_point_kind(self._job.code_dir, self._job.entry_point)
        if kind is EntryPointKind.COMMAND:
            make_executable(self._job.code_dir, self._job.entry_point)
        self.specs = plan.roles(self._job, kind, order, variables)
        for spec in self.specs:
            child = start_process(spec)
            if spec.role is Role.WORKER:
                self._workers.append(child)
            if spec.role is not Role.WORKER or kind is not EntryPointKind.COMMAND:
                self._starting.add(child)
            else:
                self._release_kvstore()  # a command does not report its start
        self._enter_training()

    def on_started(self, child: Child) -> None:
        """Record that a role has reported its start."""
        self._starting.discard(child)
        if child.spec.role is Role.WORKER:
            self._release_kvstore()
        self._enter_training()

    def on_stepped(self) -> None:
        """Record the first step of training, on any host."""
        # All roles have started, even if their reports are still unread.
        self._starting.clear()
        self.kvstore_used = True
        self._enter_training()
        if self._timeline.current is HostPhase.TRAIN:
            self._timeline.phase(HostPhase.TRAIN, ended_as=HostPhase.FIRST_STEP)
            self._log("entrypoint", "the first step of training is done")

    def on_checkpoint(self, event: Mapping[str, object]) -> None:
        """Record a checkpoint that the script has written."""
        name, step = event.get("file"), event.get("step")
        if isinstance(name, str) and isinstance(step, int):
            self.checkpoint = CheckpointFile(name, step, time.monotonic())

    def on_script_finished(self, child: Child) -> None:
        """Record that the script has reported its end; its process may still run."""
        self._log.debug(child.spec.name, "the script finished")
        self._statuses[child] = 0
        self._ended_at[child] = time.monotonic()
        if self.stop is None:
            self._complete(child)
        elif self.checkpointing and child.spec.rank == 0:
            self.end_script()  # also end the other workers, since the checkpoint is written

    def on_exit(self, child: Child, status: int) -> None:
        """Record that a process of this attempt has ended.

        Args:
            child: the process.
            status: its exit status, in the shell's convention.
        """
        role = child.spec.role
        if role is Role.WORKER:
            self._statuses.setdefault(child, status)
        if self.stop is not None and child.stopped:
            if role in (Role.FETCH, Role.INSTALL):
                # The script never ran; use the status that the signal would have caused.
                self._statuses[child] = 128 + self.stop.signal
                self.finish()
            elif role is Role.WORKER:
                self._complete(child)
        elif role is Role.WORKER and status == 0:
            self._complete(child)

    def end_script(self) -> None:
        """End the script during a stop, since the first host has written the checkpoint."""
        for child in self._table.living(Role.WORKER):
            if child not in self._statuses:
                self._statuses[child] = 0
                self._ended_at[child] = time.monotonic() - BARRIER_GRACE

    def finish(self) -> None:
        """Report once that this host has finished."""
        if not (self.finished or self.failed):
            self.finished = True
            if self._timeline.current is not HostPhase.END:
                self._timeline.phase(HostPhase.HOLD)
            self._coordinator.report_state(HostState.FINISHED)

    def tick(self, now: float) -> float:
        """Kill workers in MXNet's exit barrier after a stop; return when to call again.

        The barrier would wait for workers that the stop has interrupted.
        """
        due = now + 1.0
        if self.stop is not None:
            for child in self._table.living(Role.WORKER):
                leave_by = self._ended_at.get(child, now) + BARRIER_GRACE
                if now >= leave_by:
                    child.signal(signal.SIGKILL, leader_only=True)
                else:
                    due = min(due, leave_by)
        return due

    def check_kvstore_use(self) -> None:
        """Check whether a worker has connected to a server of this host."""
        if not self.kvstore_used:
            # The first host may run the scheduler without servers.
            servers = self._table.living(Role.SERVER) or self._table.living(Role.SCHEDULER)
            self.kvstore_used = any(process.has_callers(server.pid) for server in servers)

    def _own_status(self, child: Child, status: int) -> int:
        """Return a worker's status, or that of the stop if the stop has taken its peer away."""
        if self.stop is not None and child.failure_kind is FailureKind.PEER:
            return 128 + self.stop.signal
        return status

    def _complete(self, child: Child) -> None:
        """Record that a worker has finished; this host has finished when all have."""
        if child in self._done:
            return
        self._done.add(child)
        if child.spec.rank is not None and self.stop is None:
            self._coordinator.report_rank_finished(child.spec.rank)
        if self._done.issuperset(self._workers):
            self.finish()

    def _enter_training(self) -> None:
        if not self._starting and self._timeline.current is HostPhase.ROLES:
            self._timeline.phase(HostPhase.TRAIN)

    def _release_kvstore(self) -> None:
        """Start the work of the kvstore processes, which wait until their stdin is closed."""
        for child in self._table.living(*KVSTORE):
            child.close_stdin()


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
