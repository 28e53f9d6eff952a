"""The steps of a job on one host, and their order."""

import os
import selectors
import signal
import time
from dataclasses import replace
from typing import Any, Callable, List, Mapping, Optional

from sagemaker_mxnet_toolkit.code import preparation
from sagemaker_mxnet_toolkit.failure import (
    UNWRITTEN,
    Failure,
    FailureKind,
    JobError,
    Role,
    exit_status,
    signal_name,
)
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.background import BackgroundCall
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_toolkit.settings import variables
from sagemaker_mxnet_training.cluster.coordinator import Coordinator
from sagemaker_mxnet_training.cluster.events import (
    Action,
    DrainRoles,
    End,
    EndScripts,
    FirstStep,
    HostState,
    Restart,
    Start,
    StopScripts,
    Verdict,
)
from sagemaker_mxnet_training.cluster.follower import Follower
from sagemaker_mxnet_training.cluster.leader import Leader
from sagemaker_mxnet_training.config import directories
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.config.user_code import check_entry_point
from sagemaker_mxnet_training.host import horovod, plan, result
from sagemaker_mxnet_training.host.attempt import ROLES, TERMINATE_GRACE, Attempt, Drain
from sagemaker_mxnet_training.host.checkpoint_choice import CheckpointChoice
from sagemaker_mxnet_training.host.failures import FailureReporter, ending
from sagemaker_mxnet_training.host.observer import Observer
from sagemaker_mxnet_training.host.result import ResultPreparation
from sagemaker_mxnet_training.host.timeline import HostPhase, Timeline

_STATES = {Role.FETCH: HostState.FETCH, Role.INSTALL: HostState.INSTALL}
_EVENTS = {
    "stepped": HostState.STEPPED,
    "checkpointing": HostState.CHECKPOINTING,
    "checkpoint": HostState.CHECKPOINTED,
}
_ENDING_POLL = 0.02


# long: the steps of a job are easier to follow in one place.
class Steps:
    """Runs the steps of a job: up to ``_join`` by itself, then by orders of the coordinator.

    Args:
        marker: variables for all processes of the job.

    Attributes:
        table: the processes of this host.
        failures: reports failures of this host.
        attempt: the current attempt.
        verdict: how the job ended, when it is known.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        timeline: Timeline,
        selector: selectors.BaseSelector,
        marker: Mapping[str, str],
    ) -> None:
        self._job = job
        self._log = log
        self._timeline = timeline
        self._selector = selector
        self._marker = marker
        self.table = ProcessTable(selector, self._on_event, self._on_exit)
        self._observer = Observer(self.table, log, time.monotonic())
        self.failures = FailureReporter(
            job.current_host, log, timeline, self.table, self._observer, self._report_failure
        )
        coordinator = Leader if job.is_leader else Follower
        self.coordinator: Coordinator = coordinator(job, log, self.obey, selector)
        self._checkpoints = CheckpointChoice(job, log, selector)
        self._number = 1  # of the current or next attempt
        self.attempt = self._attempt()
        self._horovod_variables: Mapping[str, str] = {}
        self._prepared = False  # whether this host has the code and the requirements
        self._drain: Optional[Drain] = None
        self._preparation: Optional[ResultPreparation] = None
        self.verdict: Optional[Verdict] = None

    # The steps, in order. Each follows from the exit of a process, or from an order.

    def begin(self, fault: str = "") -> None:
        """Start the first step, or report why the job cannot run on this host."""
        if fault:
            failure = self.failures.of_entrypoint(fault, FailureKind.CONFIGURATION)
            self.failures.report(failure, time.monotonic())
        else:
            self._log_mpi_options()
            self._sync()

    def _log_mpi_options(self) -> None:
        if self._job.horovod is not None:
            for text in self._job.horovod.options.notes:
                self._log("entrypoint", text)
            for text in self._job.horovod.options.warnings:
                self._log.warning("entrypoint", text)

    def _sync(self) -> None:
        """Start to upload intermediate output, if SageMaker does not do it. Next: ``_fetch``."""
        self._timeline.phase(HostPhase.FETCH)
        if self._job.s3_output and not os.path.exists(self._job.output_intermediate_dir):
            # It creates the directory, and must watch it before anything is written there.
            self._start_process(plan.sync(self._job))
        else:
            self._fetch()

    def _fetch(self) -> None:
        """Fetch the user's code. Next: ``_install``."""
        directories.create(self._job)
        if preparation.fetch_needed(self._job.module_dir, self._job.code_dir):
            self._start_process(plan.fetch(self._job))
        else:
            self._install()

    def _install(self) -> None:
        """Install the requirements. Next: ``_prepare_horovod``."""
        check_entry_point(self._job.code_dir, self._job.entry_point)
        self._timeline.phase(HostPhase.INSTALL)
        if preparation.install_needed(self._job.code_dir, self._job.entry_point):
            self._start_process(plan.install(self._job))
        else:
            self._prepare_horovod()

    def _prepare_horovod(self) -> None:
        """Check the requirements of Horovod, if it is used. Next: ``_join``."""
        job = self._job
        if job.horovod is None or not job.is_distributed:
            self._join()
        else:
            BackgroundCall(lambda: horovod.prepare(job), self._selector, self._on_horovod)

    def _on_horovod(self, call: BackgroundCall) -> None:
        try:
            self._horovod_variables = call.result()
        except JobError as error:
            failure = self.failures.of_entrypoint(str(error), error.kind)
            self.failures.report(failure, time.monotonic())
        else:
            if not self._ending():
                self._join()

    def _join(self) -> None:
        """Report that this host is ready. When all are, the order is ``Start``."""
        self._prepared = True
        self._timeline.phase(HostPhase.JOIN)
        if self._job.is_leader:
            attempt = self.attempt
            self._checkpoints.choose(lambda name: self._on_chosen(attempt, name))
        else:
            self.coordinator.report_ready("")

    def _on_chosen(self, attempt: Attempt, name: str) -> None:
        if attempt is self.attempt and not attempt.failed:
            self.coordinator.report_ready(name)

    def obey(self, order: Action) -> None:
        """Carry out an order, the first host's or this host's own."""
        methods: Mapping[type, Callable[[Any], None]] = {
            Start: self._start,
            FirstStep: self._record_first_step,
            Restart: self._restart,
            StopScripts: self._stop,
            EndScripts: self._end_scripts,
            DrainRoles: self._drain_roles,
            End: self._end,
        }
        methods[type(order)](order)

    def _start(self, order: Start) -> None:
        """Start the roles. When all scripts have finished, the order is ``DrainRoles``."""
        if self._ending():
            return
        self._timeline.phase(HostPhase.ROLES)
        self.coordinator.report_state(HostState.TRAINING)
        if order.resume not in ("", variables.FRESH):
            self._log("entrypoint", f"resuming from {order.resume}")
            self._timeline.instant("resume", order.resume, f"attempt {order.attempt}")
        self._observer.restart_progress(time.monotonic())
        self.attempt.start(order, self._start_process, self._horovod_variables)

    def _record_first_step(self, order: FirstStep) -> None:
        """Record the first step of training, on some host."""
        self.attempt.on_stepped()

    def _restart(self, order: Restart) -> None:
        """Kill the roles. When all have ended, the next step is ``_join``."""
        cause = self._log.redact(order.failure.headline())
        self._record_checkpoint()
        self._timeline.instant("restart", f"attempt {order.attempt}", cause)
        self._number = order.attempt
        # Remove a failure file of the script, since the job may still succeed.
        result.clear(self._job.output_dir)
        self._log.error("entrypoint", f"{cause}; restarting (attempt {order.attempt})")
        self._drain = None
        if self._preparation is not None:
            self._preparation.cancel()
        self.attempt.failed = True
        if self._prepared:
            self._timeline.phase(HostPhase.CLEAR)
            self.coordinator.report_state(HostState.CLEAR)
        self.table.stop(self.table.living(*ROLES), signal.SIGKILL, 0.0)

    def _end_scripts(self, order: EndScripts) -> None:
        """End the script during a stop, since the checkpoint is written."""
        self.attempt.end_script()

    def _drain_roles(self, order: DrainRoles) -> None:
        """Wait for the other processes. When they have ended on all hosts, the order is ``End``."""
        self._timeline.phase(HostPhase.DRAIN)
        timeout = self._job.settings.drain_timeout
        self._drain = Drain(self.attempt, self.table, self._log, timeout, self._on_empty)

    def _stop(self, order: StopScripts) -> None:
        """Ask the script to stop, with time for a checkpoint. This may happen at any time."""
        stop = self.attempt.stop = order.stop
        detail = f"{signal_name(stop.signal)} to {stop.host}"
        self._timeline.instant("stop", "stop", detail)
        grace = self._job.settings.stop_grace
        self._log("entrypoint", f"stopping the job: {detail}; the script has {grace:g} s to exit")
        preparing = self.table.living(Role.FETCH, Role.INSTALL)
        scripts = self.table.living(Role.WORKER)
        # Only scripts get SIGINT, for which a starting Python would print a traceback.
        self.table.stop(preparing, signal.SIGTERM, grace)
        # Scripts handle SIGTERM, and not the SIGHUP of a terminal that was closed.
        number = signal.SIGTERM if stop.signal == signal.SIGHUP else stop.signal
        # A script that writes a checkpoint still needs the processes that load its data.
        self.table.stop(scripts, number, grace, leader_first=self.attempt.checkpointing)
        if not preparing and not scripts:
            self.attempt.finish()

    def _end(self, order: End) -> None:
        """Stop all processes, and keep the verdict. This may happen at any time."""
        if self.verdict is not None:
            return
        verdict = self.verdict = order.verdict
        self._timeline.phase(HostPhase.END)
        cause = "" if verdict.failure is None else self._log.redact(verdict.failure.headline())
        self._timeline.instant("verdict", verdict.outcome.value, cause)
        if cause:
            self._log.error("entrypoint", f"the job failed: {cause}")
        for child in self.table.living(Role.SYNC):
            child.close_stdin()
        self.table.stop(self.table.living(), signal.SIGTERM, TERMINATE_GRACE)

    def close(self) -> None:
        """Close the connections to other hosts, and complete the timeline."""
        self.coordinator.close()
        self._record_checkpoint()
        self._timeline.phase(None)
        for child in self.table.living():
            self._record(child, None)

    # Between the steps.

    def tick(self, now: float) -> float:
        """Check deadlines and processes; return when to call again (monotonic, seconds)."""
        due = min(self.table.poll(now), self.failures.tick(now), self.attempt.tick(now))
        if now >= self._observer.due:
            self._observe(now)
        due = min(due, self._observer.due)
        if self.verdict is not None:
            return min(due, now + _ENDING_POLL)
        if self._drain is not None:
            due = min(due, self._drain.tick(now))
        if self.attempt.failed:
            due = min(due, now + _ENDING_POLL)
            if self._cleared(now):
                self._begin_attempt()
        if self._preparation is not None:
            self._preparation.tick(now)
        return due

    def over(self, now: float) -> bool:
        """Return whether the job has ended, with all processes, and other hosts know it."""
        if self.verdict is None or self.table.living():
            return False
        return self.table.sweep(now, TERMINATE_GRACE) and self.coordinator.delivered(now)

    def _cleared(self, now: float) -> bool:
        """Return whether all processes of an attempt have ended. Preparation continues."""
        if not self._prepared:
            return True
        return not self.table.living(*ROLES) and self.table.sweep(now, 0.0)

    def _attempt(self) -> Attempt:
        return Attempt(
            self._job, self._log, self._timeline, self.table, self.coordinator, self._number
        )

    def _begin_attempt(self) -> None:
        stop = self.attempt.stop
        self.attempt = self._attempt()
        self.attempt.stop = stop
        if stop is not None:
            self.attempt.finish()
        elif self._prepared:
            self._join()

    def _ending(self) -> bool:
        return self.verdict is not None or self.attempt.stop is not None

    def _report_failure(self, failure: Failure, when: float) -> None:
        self.coordinator.report_failure(failure, when)

    def _on_event(self, child: Child, event: Mapping[str, object]) -> None:
        name = str(event["event"])
        if self.attempt.failed and child.spec.role in ROLES:
            return
        if name == "started" and child.spec.role is Role.SYNC:
            if not self._ending():
                self._fetch()
        elif name == "started":
            self.attempt.on_started(child)
        elif name in _EVENTS:
            self.coordinator.report_state(_EVENTS[name])
            self.attempt.checkpointing |= name == "checkpointing"
            self._checkpoints.on_event(event)
            if name == "checkpoint":
                self.attempt.on_checkpoint(event)
        elif name == "horovod":
            self._observer.ignore_threads(child, _integers(event.get("threads")))
        elif name == "left" and not child.stopped:
            self.failures.report_left(child, event)
        elif name == "finished" and child.spec.role is Role.WORKER:
            self.attempt.on_script_finished(child)

    def _on_exit(self, child: Child) -> None:
        role, status = child.spec.role, exit_status(child.returncode or 0)
        self._record(child, status)
        self._log.debug(child.spec.name, f"ended with {ending(child.returncode or 0)}")
        if not self.attempt.failed:
            if child.stopped and child.failure_kind in UNWRITTEN:
                self.failures.report_child(child)
            self.attempt.on_exit(child, status)
        if child.stopped:
            return
        if status != 0:
            self.failures.report_child(child)
        elif role is Role.FETCH and not self._ending():
            self._install()
        elif role is Role.INSTALL and not self._ending():
            self._prepare_horovod()

    def _on_empty(self) -> None:
        """Prepare the result when no process is left, and report it."""
        if self.attempt.stop is not None:
            self.coordinator.report_state(HostState.DRAINED)
            return
        self._preparation = ResultPreparation(self._job, self._log, self._selector, self._on_result)

    def _on_result(self, failure: Optional[Failure]) -> None:
        if failure is None:
            if result.has_model(self._job.model_dir):
                self.coordinator.report_state(HostState.SAVED)
            self.coordinator.report_state(HostState.DRAINED)
        else:
            self.failures.report(failure, time.monotonic())

    def _start_process(self, spec: ProcessSpec) -> Child:
        variables = {**spec.environment, **self._marker, **self._checkpoints.variables}
        marked = replace(spec, environment=variables)
        child = self.table.start(marked)
        self._log.debug(spec.name, f"started (process {child.pid})")
        state = _STATES.get(spec.role)
        if state is not None:
            self.coordinator.report_state(state)
        return child

    def _record(self, child: Child, status: Optional[int]) -> None:
        spec, track, number = child.spec, self._observer.take_track(child), self.attempt.number
        name = spec.name if number == 1 or spec.role not in ROLES else f"{spec.name} #{number}"
        self._timeline.process(
            child.pid, name, spec.role, child.started, status, child.signals, track
        )

    def _record_checkpoint(self) -> None:
        """Record the last checkpoint of the attempt. All would be too many for a long job."""
        last = self.attempt.checkpoint
        if last is not None:
            self._timeline.instant("checkpoint", last.name, f"step {last.step}", last.when)

    def _observe(self, now: float) -> None:
        """Sample the processes, and report the progress of the worker."""
        with self._observer.paid():
            idle = self._observer.sample(now)
            if idle is not None:
                self.attempt.check_kvstore_use()
                if self.table.living(Role.WORKER) and not self.attempt.finished:
                    self.coordinator.report_idle(idle)


def _integers(value: object) -> List[int]:
    return [each for each in value if isinstance(each, int)] if isinstance(value, list) else []
