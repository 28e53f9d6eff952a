"""The steps of a job on one host, and what leads from each to the next."""

import os
import selectors
import signal
import time
from dataclasses import replace
from typing import Mapping, Optional

from sagemaker_mxnet_toolkit.code import preparation
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status, signal_name
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_toolkit.settings import variables
from sagemaker_mxnet_training.cluster.coordination import (
    Coordinator,
    Restart,
    Start,
    Step,
    Stop,
    Verdict,
)
from sagemaker_mxnet_training.cluster.opening import open_coordinator
from sagemaker_mxnet_training.config import configuration
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import diagnosis, plan, result
from sagemaker_mxnet_training.host.attempt import ROLES, Attempt
from sagemaker_mxnet_training.host.conclusion import ResultPreparation
from sagemaker_mxnet_training.host.drain import TERMINATE_GRACE, Drain
from sagemaker_mxnet_training.host.failures import FailureReporter
from sagemaker_mxnet_training.host.observer import Observer
from sagemaker_mxnet_training.host.phase import HostPhase
from sagemaker_mxnet_training.host.resume import Resume
from sagemaker_mxnet_training.host.standby import StandbyProcesses
from sagemaker_mxnet_training.host.timeline import Timeline

_STEPS = {Role.FETCH: Step.FETCH, Role.INSTALL: Step.INSTALL}
_EVENTS = {
    "stepped": Step.STEPPED,
    "checkpointing": Step.CHECKPOINTING,
    "checkpoint": Step.CHECKPOINTED,
}
_WORK = (Role.FETCH, Role.INSTALL, Role.WORKER)
_ENDING_POLL = 0.02


# long: the steps of a job, and what leads from each to the next, are to be read in one place.
class Steps:
    """Takes the steps of a job: by itself up to ``_join``, then as ``coordination.Orders`` asks.

    Args:
        job: what to run.
        log: the entrypoint's log.
        timeline: where phases and processes are recorded.
        selector: the supervisor's.
        marker: variables that every process of the job gets.

    Attributes:
        table: the processes of this host.
        failures: where failures of this host are reported.
        attempt: the present run of the roles.
        verdict: how the job ended, once that is known.
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
        self.coordinator: Coordinator = open_coordinator(job, log, self, selector)
        self._resume = Resume(job, log, selector)
        self._number = 1  # of the attempt that is, or is about to begin
        self.attempt = self._attempt()
        self._standby = StandbyProcesses(job, log, self.table, self._start_process)
        self._prepared = False  # whether this host has the code and the requirements
        self._drain: Optional[Drain] = None
        self._preparation: Optional[ResultPreparation] = None
        self.verdict: Optional[Verdict] = None

    # In order. The exit of a process, or an order, leads from one step to the next.

    def begin(self, fault: str = "") -> None:
        """Begin with the first step, or report why the job cannot run on this host."""
        if fault:
            failure = self.failures.own(fault, FailureKind.CONFIGURATION)
            self.failures.report(failure, time.monotonic())
        else:
            self._fetch()

    def _fetch(self) -> None:
        """Bring the user's code into the code directory. Then: ``_install``."""
        self._timeline.phase(HostPhase.FETCH)
        if self._job.s3_output and not os.path.exists(self._job.output_intermediate_dir):
            self._start_process(plan.sync(self._job))
        if preparation.fetch_needed(self._job.module_dir, self._job.code_dir):
            self._start_process(plan.fetch(self._job))
        else:
            self._install()

    def _install(self) -> None:
        """Install what the code requires. Then: ``_join``."""
        configuration.check_entry_point(self._job.code_dir, self._job.entry_point)
        self._timeline.phase(HostPhase.INSTALL)
        if preparation.install_needed(self._job.code_dir, self._job.entry_point):
            self._start_process(plan.install(self._job))
        else:
            self._join()

    def _join(self) -> None:
        """Report that this host is ready. When all hosts are, the order is ``start``."""
        self._prepared = True
        self._timeline.phase(HostPhase.JOIN)
        if self._job.is_leader:
            attempt = self.attempt
            self._resume.choose(lambda name: self._on_chosen(attempt, name))
        else:
            self.coordinator.report_ready("")

    def _on_chosen(self, attempt: Attempt, name: str) -> None:
        if attempt is self.attempt and not attempt.failed:
            self.coordinator.report_ready(name)

    def start(self, order: Start) -> None:
        """Order: start the roles. When all scripts have finished, the order is ``drain``."""
        if self._ending():
            return
        self._timeline.phase(HostPhase.ROLES)
        self.coordinator.report_step(Step.TRAINING)
        if order.resume not in ("", variables.FRESH):
            self._log("entrypoint", f"training can go on from {order.resume}")
            self._timeline.instant("resume", order.resume, f"attempt {order.attempt}")
        self._observer.restart_progress(time.monotonic())
        self.attempt.start(order, self._start_process)

    def stepped(self) -> None:
        """Order: take note of the first step of training, on whichever host."""
        self.attempt.on_stepped()
        self._standby.prepare(self.attempt)

    def restart(self, order: Restart) -> None:
        """Order: end the roles. When nothing is left of them, the next step is ``_join``."""
        cause = self._log.redact(order.failure.headline())
        self._record_checkpoint()
        self._timeline.instant("restart", f"attempt {order.attempt}", cause)
        self._number = order.attempt
        # What the script wrote to say why it failed is told here; the job may still succeed.
        result.clear(self._job.output_dir)
        self._log.error("entrypoint", f"{cause}; attempt {order.attempt} follows")
        self._drain = None
        if self._preparation is not None:
            self._preparation.give_up()
        self.attempt.failed = True
        if self._prepared:
            self._timeline.phase(HostPhase.CLEAR)
            self.coordinator.report_step(Step.CLEAR)
        # The failure of one is that of all: nobody has anything to finish.
        self.table.stop(self.table.living(*ROLES), signal.SIGKILL, 0.0)

    def leave(self) -> None:
        """Order, during a stop: end the script, the checkpoint is written."""
        self.attempt.leave()

    def drain(self) -> None:
        """Order: see the other processes out. When all hosts have, the order is ``end``."""
        self._standby.dismiss()
        self._timeline.phase(HostPhase.DRAIN)
        timeout = self._job.settings.drain_timeout
        self._drain = Drain(self.attempt, self.table, self._log, timeout, self._on_empty)

    def stop(self, stop: Stop) -> None:
        """Order, at any time: ask the script to stop, in time for its checkpoint."""
        self.attempt.stop = stop
        self._standby.dismiss()
        detail = f"{signal_name(stop.signal)} to {stop.host}"
        self._timeline.instant("stop", "stop", detail)
        grace = self._job.settings.stop_grace
        self._log("entrypoint", f"the job stops: {detail}; the script has {grace:g} s from now")
        work = self.table.living(*_WORK)
        # Up to its last checkpoint a script needs the processes that load its data: a batch that
        # one of them was asked for would never come.
        self.table.stop(work, stop.signal, grace, leader_first=self.attempt.checkpointing)
        if not work:
            self.attempt.finish()

    def end(self, verdict: Verdict) -> None:
        """Order, at any time: end whatever still runs, and report this verdict."""
        if self.verdict is not None:
            return
        self.verdict = verdict
        self._timeline.phase(HostPhase.END)
        cause = "" if verdict.failure is None else self._log.redact(verdict.failure.headline())
        self._timeline.instant("verdict", verdict.outcome.value, cause)
        if cause:
            self._log.error("entrypoint", f"the job fails: {cause}")
        for child in self.table.living(Role.SYNC):
            child.close_stdin()
        self.table.stop(self.table.living(), signal.SIGTERM, TERMINATE_GRACE)

    def close(self) -> None:
        """Leave the other hosts, and complete the timeline."""
        self.coordinator.close()
        self._record_checkpoint()
        self._timeline.phase(None)
        for child in self.table.living():
            self._record(child, None)

    # Between the steps.

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again (monotonic, seconds)."""
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
                self._begin_anew()
        if self._preparation is not None:
            self._preparation.tick(now)
        return due

    def over(self, now: float) -> bool:
        """Return whether the job has ended, nothing is left of it, and the others know."""
        if self.verdict is None or self.table.living():
            return False
        return self.table.sweep(now, TERMINATE_GRACE) and self.coordinator.settled(now)

    def _cleared(self, now: float) -> bool:
        """Return whether nothing is left of an attempt. What prepares for all of them goes on."""
        if not self._prepared:
            return True
        return not self.table.living(*ROLES) and self.table.sweep(now, 0.0)

    def _attempt(self) -> Attempt:
        return Attempt(
            self._job, self._log, self._timeline, self.table, self.coordinator, self._number
        )

    def _begin_anew(self) -> None:
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
        if name == "started":
            self.attempt.on_started(child)
        elif name in _EVENTS:
            self.coordinator.report_step(_EVENTS[name])
            self.attempt.checkpointing |= name == "checkpointing"
            self._resume.on_event(event)
            if name == "checkpoint":
                self.attempt.on_checkpoint(event)
                self._standby.prepare(self.attempt)
        elif name == "finished" and child.spec.role is Role.WORKER:
            self.attempt.on_script_finished(child)

    def _on_exit(self, child: Child) -> None:
        role, status = child.spec.role, exit_status(child.returncode or 0)
        if role is Role.STANDBY:
            return
        self._record(child, status)
        self._log(child.spec.name, f"ended with {diagnosis.ending(child.returncode or 0)}")
        if not self.attempt.failed:
            if child.stopped and diagnosis.unwritten(child):
                self.failures.report_child(child)
            self.attempt.on_exit(child, status)
        if child.stopped:
            return
        if status != 0:
            self.failures.report_child(child)
        elif role is Role.FETCH and not self._ending():
            self._install()
        elif role is Role.INSTALL and not self._ending():
            self._join()

    def _on_empty(self) -> None:
        """Prepare the result, once no process is left, and report that."""
        if self.attempt.stop is not None:
            self.coordinator.report_step(Step.DRAINED)
            return
        self._preparation = ResultPreparation(
            self._log, self._job.output_dir, self._job.current_host, self._selector, self._on_result
        )

    def _on_result(self, failure: Optional[Failure]) -> None:
        if failure is None:
            self.coordinator.report_step(Step.DRAINED)
        else:
            self.failures.report(failure, time.monotonic())

    def _start_process(self, spec: ProcessSpec) -> Child:
        marked = replace(spec, environment={**spec.environment, **self._marker})
        child = self._standby.take(marked)
        how = "" if child is None else ", which has imported MXNet"
        child = child or self.table.start(marked)
        if spec.role is not Role.STANDBY:
            self._log(spec.name, f"started (process {child.pid}{how})")
        step = _STEPS.get(spec.role)
        if step is not None:
            self.coordinator.report_step(step)
        return child

    def _record(self, child: Child, status: Optional[int]) -> None:
        spec, track, number = child.spec, self._observer.take_track(child), self.attempt.number
        name = spec.name if number == 1 or spec.role not in ROLES else f"{spec.name} #{number}"
        self._timeline.process(
            child.pid, name, spec.role, child.started, status, child.signals, track
        )

    def _record_checkpoint(self) -> None:
        """Record the last checkpoint of the attempt; all would be too many for a long job."""
        last = self.attempt.checkpoint
        if last is not None:
            self._timeline.instant("checkpoint", last.name, f"step {last.step}", last.when)

    def _observe(self, now: float) -> None:
        """Sample the processes; report whether the worker makes progress."""
        with self._observer.paid():
            idle = self._observer.sample(now)
            if idle is not None:
                self.attempt.check_kvstore_use()
                if self.table.living(Role.WORKER) and not self.attempt.finished:
                    self.coordinator.report_idle(idle)
