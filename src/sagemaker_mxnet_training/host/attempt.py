"""One run of the job's roles on a host: everything that another run would begin anew."""

import signal
import time
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.code.entry_point import (
    EntryPointKind,
    entry_point_kind,
    make_executable,
)
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import process
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.cluster.coordination import Coordinator, Start, Step, Stop
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import plan
from sagemaker_mxnet_training.host.phase import HostPhase
from sagemaker_mxnet_training.host.timeline import Timeline

BARRIER_GRACE = 1.0
"""Seconds that a worker whose script finished after a stop has to leave MXNet's exit barrier."""

KVSTORE = (Role.SCHEDULER, Role.SERVER)

ROLES = (Role.WORKER, *KVSTORE)
"""What is started anew in each attempt."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint that is whole: its name, the steps before it, when (monotonic, seconds)."""

    name: str
    step: int
    when: float


class Attempt:
    """The state of one run of the roles, from the code being ready to the script's end.

    Args:
        job: what to run.
        log: the entrypoint's log.
        timeline: where phases are recorded.
        table: the processes of this host.
        coordinator: where this host's progress is reported.
        number: of this run, from 1.

    Attributes:
        number: of this run, from 1.
        stop: the request to stop this run, if there was one.
        failed: whether the run has failed and another follows: nothing of it counts any more.
        finished: whether the leader has been told that the script has finished.
        worker_status: exit status of the script, in the shell's convention, if it has ended.
        kvstore_used: whether a worker is known to have used the kvstore.
        checkpointing: whether this host's script uses checkpoints.
        checkpoint: the last one that it has written.
        specs: what was started.
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
        self._script_ended_at: Optional[float] = None
        self.number = number
        self.checkpointing = False
        self.checkpoint: Optional[CheckpointFile] = None
        self.specs: Tuple[ProcessSpec, ...] = ()
        self.stop: Optional[Stop] = None
        self.failed = False
        self.finished = False
        self.worker_status: Optional[int] = None
        self.kvstore_used = False

    def start(self, order: Start, start_process: Callable[[ProcessSpec], Child]) -> None:
        """Start the kvstore processes of this host, and its worker.

        Args:
            order: says where the kvstore meets, and what training goes on from.
            start_process: starts one process.
        """
        kind = entry_point_kind(self._job.code_dir, self._job.entry_point)
        if kind is EntryPointKind.COMMAND:
            make_executable(self._job.code_dir, self._job.entry_point)
        self.specs = plan.roles(self._job, kind, order)
        for spec in self.specs:
            child = start_process(spec)
            if spec.role is not Role.WORKER or kind is not EntryPointKind.COMMAND:
                self._starting.add(child)
            else:
                self._release_kvstore()  # a command does not report that it runs
        self._enter_training()

    def on_started(self, child: Child) -> None:
        """Take note that a role has reported that it runs."""
        self._starting.discard(child)
        if child.spec.role is Role.WORKER:
            self._release_kvstore()
        self._enter_training()

    def on_stepped(self) -> None:
        """Take note that a server, of whichever host, has done the first step of training."""
        # Whatever other reports are still unread: who trains has started.
        self._starting.clear()
        self.kvstore_used = True
        self._enter_training()
        if self._timeline.current is HostPhase.TRAIN:
            self._timeline.phase(HostPhase.TRAIN, ended_as=HostPhase.FIRST_STEP)
            self._log("entrypoint", "the first step of training is done")

    def on_checkpoint(self, event: Mapping[str, object]) -> None:
        """Take note of a checkpoint that the script has written."""
        name, step = event.get("file"), event.get("step")
        if isinstance(name, str) and isinstance(step, int):
            self.checkpoint = CheckpointFile(name, step, time.monotonic())

    def on_script_finished(self, child: Child) -> None:
        """Take note that the script has reported its end; its process may still run."""
        self._log(child.spec.name, "the script finished")
        self.worker_status = 0
        self._script_ended_at = time.monotonic()
        if self.stop is None:
            self.finish()

    def on_exit(self, child: Child, status: int) -> None:
        """Take note that a process of this run has ended.

        Args:
            child: the process.
            status: its exit status, in the shell's convention.
        """
        role = child.spec.role
        if role is Role.WORKER and self._script_ended_at is None:
            self.worker_status = status
        if self.stop is not None and child.stopped:
            if role in (Role.FETCH, Role.INSTALL):
                # The script never ran; it ends as if the signal had reached it.
                self.worker_status = 128 + self.stop.signal
                self.finish()
            elif role is Role.WORKER:
                self.finish()
        elif role is Role.WORKER and status == 0:
            self.finish()

    def leave(self) -> None:
        """End the script, which was asked to stop: the first host has written the checkpoint."""
        if self.worker_status is None:
            self.worker_status = 0
            self._script_ended_at = time.monotonic() - BARRIER_GRACE

    def finish(self) -> None:
        """Report, once, that the work of this host is done."""
        if not (self.finished or self.failed):
            self.finished = True
            if self._timeline.current is not HostPhase.END:
                self._timeline.phase(HostPhase.HOLD)
            self._coordinator.report_step(Step.FINISHED)

    def tick(self, now: float) -> float:
        """End a worker that sits in MXNet's exit barrier after a stop; return when to call again.

        The barrier waits for workers that the stop may have interrupted anywhere.
        """
        if self.stop is not None and self._script_ended_at is not None:
            for child in self._table.living(Role.WORKER):
                if now - self._script_ended_at < BARRIER_GRACE:
                    return self._script_ended_at + BARRIER_GRACE
                child.signal(signal.SIGKILL, leader_only=True)
        return now + 1.0

    def check_kvstore_use(self) -> None:
        """Notice whether a worker has ever connected to a server of this host."""
        if not self.kvstore_used:
            # A host that trains without the kvstore may have its scheduler alone.
            servers = self._table.living(Role.SERVER) or self._table.living(Role.SCHEDULER)
            self.kvstore_used = any(process.has_callers(server.pid) for server in servers)

    def _enter_training(self) -> None:
        if not self._starting and self._timeline.current is HostPhase.ROLES:
            self._timeline.phase(HostPhase.TRAIN)

    def _release_kvstore(self) -> None:
        """Let the kvstore processes go on, which wait for this with their stdin."""
        for child in self._table.living(*KVSTORE):
            child.close_stdin()
