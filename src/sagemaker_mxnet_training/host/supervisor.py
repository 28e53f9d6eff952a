"""The one loop that owns everything on a host: its processes, signals, deadlines and orders.

Whatever happens arrives in the loop as a ready file descriptor or a passed deadline. What it means
for the job is decided in ``ending``; the supervisor reports, and carries orders out.
"""

import contextlib
import os
import selectors
import signal
import socket
import time
import traceback
from dataclasses import replace
from typing import Callable, Dict, Iterator, Mapping, Optional, Set

from sagemaker_mxnet_toolkit import fileset
from sagemaker_mxnet_toolkit.code import fetch
from sagemaker_mxnet_toolkit.code.entry_point import (
    EntryPointKind,
    entry_point_kind,
    make_executable,
)
from sagemaker_mxnet_toolkit.container import cgroup
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import Failure, Outcome, Role, exit_status, signal_name
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import process, usage
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_toolkit.processes.usage import Pace, Track, Usage
from sagemaker_mxnet_toolkit.requirements import install as requirements
from sagemaker_mxnet_training.cluster import coordination
from sagemaker_mxnet_training.cluster.coordination import Coordinator, Step, Stop, Verdict
from sagemaker_mxnet_training.cluster.network import Rendezvous
from sagemaker_mxnet_training.config import configuration
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import plan, result
from sagemaker_mxnet_training.host.timeline import Timeline
from sagemaker_mxnet_training.host.watchdog import JOB_VARIABLE, Watchdog

FAILURE_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL where a process is in the way of a job that must end."""

FREEZE_GRACE = 2.0
"""Seconds that a scheduler or a server may be stopped (SIGSTOP) before that is a failure."""

REPORT_GRACE = 1.0
"""Seconds that a process has to end after it reported its failure."""

UNUSED_DRAIN = 1.0
"""Seconds that scheduler and servers have to leave when no worker ever called them."""

PROGRESS_PERIOD = 2.0
"""Seconds, at the least, over which the worker makes progress or does not."""

_BUSY_SHARE = 0.02
"""Share of one CPU above which a worker counts as working rather than waiting."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STEPS = {Role.FETCH: Step.FETCH, Role.INSTALL: Step.INSTALL}
_WORK = (Role.FETCH, Role.INSTALL, Role.WORKER)
_KVSTORE = (Role.SCHEDULER, Role.SERVER)


class Supervisor:
    """Runs one job on one host, from the user's code to the result files.

    Args:
        job: what to run.
        log: the entrypoint's voice.
        timeline: where phases and processes are recorded.
    """

    def __init__(self, job: Job, log: Log, timeline: Timeline) -> None:
        self._job = job
        self._log = log
        self._timeline = timeline
        self._started = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._table = ProcessTable(self._selector, self._on_event, self._on_exit)
        self._coordinator: Optional[Coordinator] = None
        self._watchdog: Optional[Watchdog] = None
        self._job_id = os.urandom(16).hex()
        self._oom_kills = cgroup.oom_kills()
        self._unheard: Set[Child] = set()  # roles that have not said that they run
        self._pace = Pace(self._started + usage.PERIOD)
        self._tracks: Dict[Child, Track] = {}
        self._reported: Dict[Child, float] = {}  # when a child reported that it failed
        self._stop: Optional[Stop] = None
        self._signalled = False
        self._draining = False
        self._drain_until = 0.0
        self._drained = False
        self._verdict: Optional[Verdict] = None
        self._finished = False
        self._done_at: Optional[float] = None  # when the script had finished
        self._worker_status: Optional[int] = None
        self._kvstore_used = False
        self._usage = Usage()
        self._active_at = self._looked_at = self._started

    def run(self, fault: str = "") -> int:
        """Run the job to its end; return the exit status of the entrypoint.

        Args:
            fault: why the job cannot run on this host; nothing is started, but others are told.
        """
        with self._signals():
            try:
                self._begin(fault)
                while not self._over():
                    self._turn()
            except JobError as error:
                self._abort(str(error), "")
            except Exception as error:
                trace = traceback.format_exc()
                self._abort(f"{result.INTERNAL}: {type(error).__name__}: {error}", trace)
            return self._finish()

    # The loop.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let signals wake the loop up, and nothing else."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        numbers = (*_STOP_SIGNALS, signal.SIGCHLD)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, lambda _: self._on_signals(reader))
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()

    def _turn(self) -> None:
        now = time.monotonic()
        due = min(self._tick(now), self._lead().tick(now))
        if self._over():
            return
        for key, mask in self._selector.select(max(0.0, due - time.monotonic())):
            # One handler may have closed what the next one was to read.
            if self._selector.get_map().get(key.fd) is key:
                key.data(mask)

    def _over(self) -> bool:
        if self._verdict is None or self._table.living():
            return False
        now = time.monotonic()
        return self._table.sweep(now, FAILURE_GRACE) and self._lead().settled(now)

    def _lead(self) -> Coordinator:
        assert self._coordinator is not None
        return self._coordinator

    def _tick(self, now: float) -> float:
        if self._watchdog is not None:
            self._watchdog.beat()
        due = min(now + 1.0, self._table.poll(now))
        for child, when in list(self._reported.items()):
            if now - when >= REPORT_GRACE:
                self._report_exit(child)
            else:
                due = min(due, when + REPORT_GRACE)
        self._watch_frozen(now)
        if self._stop is not None and self._done_at is not None:
            due = min(due, self._free_from_barrier(now, self._done_at))
        if now >= self._pace.due:
            self._look(now)
        due = min(due, self._pace.due)
        if self._draining and not self._drained and self._verdict is None:
            due = min(due, self._watch_drain(now))
        if self._verdict is not None:
            due = min(due, now + 0.02)
        return due

    # Preparation: the user's code and what it requires.

    def _begin(self, fault: str) -> None:
        result.clear(self._job.output_dir)
        if fault:
            failure = Failure(self._job.current_host, Role.ENTRYPOINT, fault)
            self._coordinator = coordination.coordinator(self._job, self._log, self, self._selector)
            self._report_failure(failure, time.monotonic())
            return
        process.become_subreaper()
        self._watchdog = Watchdog(
            self._job_id,
            self._job.settings.peer_timeout,
            result.failure_path(self._job.output_dir),
            self._job.current_host,
            self._job.environ,
        )
        self._table.disown(self._watchdog.pid)
        self._coordinator = coordination.coordinator(self._job, self._log, self, self._selector)
        self._timeline.phase("fetch")
        if self._job.s3_output and not os.path.exists(self._job.output_intermediate_dir):
            self._start_process(plan.sync(self._job))
        if fetch.needed(self._job.module_dir, self._job.code_dir):
            self._start_process(plan.fetch(self._job))
        else:
            self._on_fetched()

    def _on_fetched(self) -> None:
        configuration.check_entry_point(self._job.code_dir, self._job.entry_point)
        self._timeline.phase("install")
        if requirements.needed(self._job.code_dir, self._job.entry_point):
            self._start_process(plan.install(self._job))
        else:
            self._on_installed()

    def _on_installed(self) -> None:
        self._timeline.phase("join")
        self._lead().report_step(Step.READY)

    # Orders, as coordination.Orders describes them.

    def start(self, rendezvous: Optional[Rendezvous]) -> None:
        """Start the kvstore and the worker."""
        self._timeline.phase("roles")
        self._lead().report_step(Step.TRAINING)
        self._active_at = time.monotonic()
        kind = entry_point_kind(self._job.code_dir, self._job.entry_point)
        if kind is EntryPointKind.COMMAND:
            make_executable(self._job.code_dir, self._job.entry_point)
        for spec in plan.roles(self._job, kind, rendezvous):
            if self._verdict is None and self._stop is None:
                child = self._start_process(spec)
                if kind is not EntryPointKind.COMMAND or spec.role is not Role.WORKER:
                    self._unheard.add(child)
                else:
                    self._let_kvstore_go()  # nothing tells when a shell script is under way
        self._on_running()

    def stepped(self) -> None:
        """End the phase of the first step; a server of whichever host has taken it."""
        # Whatever another pipe has still to tell: whoever trains runs.
        self._unheard.clear()
        self._on_running()
        if self._timeline.current == "train":
            self._timeline.phase("train", ended_as="first step")
            self._log("entrypoint", "the first step of training is done")

    def stop(self, stop: Stop) -> None:
        """Ask the worker to stop, in time for its checkpoint."""
        self._stop = stop
        self._timeline.instant("stop", "stop", f"{signal_name(stop.signal)} to {stop.host}")
        grace = self._job.settings.stop_grace
        self._log(
            "entrypoint",
            f"the job stops: {signal_name(stop.signal)} to {stop.host}; "
            f"the script has {grace:g} s from now",
        )
        work = self._table.living(*_WORK)
        self._table.stop(work, stop.signal, grace)
        if not work:
            self._finish_work()

    def drain(self) -> None:
        """All workers have finished: see the rest of the processes out."""
        self._timeline.phase("drain")
        self._draining = True
        if self._stop is not None:
            self._table.stop(self._table.living(*_KVSTORE), signal.SIGTERM, FAILURE_GRACE)
            return
        self._look_at_kvstore()
        self._drain_until = time.monotonic() + self._job.settings.drain_timeout

    def end(self, verdict: Verdict) -> None:
        """Make an end of whatever still runs, and report this verdict."""
        self._verdict = verdict
        self._timeline.phase("end")
        detail = "" if verdict.failure is None else self._log.redact(verdict.failure.headline())
        self._timeline.instant("verdict", verdict.outcome.value, detail)
        if verdict.failure is not None:
            self._log.error("entrypoint", f"the job fails: {verdict.failure.headline()}")
        for child in self._table.living(Role.SYNC):
            child.let_go()
        self._table.stop(self._table.living(), signal.SIGTERM, FAILURE_GRACE)

    # What happens on this host.

    def _start_process(self, spec: ProcessSpec) -> Child:
        marked = {**spec.environment, JOB_VARIABLE: self._job_id}
        child = self._table.start(replace(spec, environment=marked))
        self._log(spec.name, f"started (process {child.pid})")
        step = _STEPS.get(spec.role)
        if step is not None:
            self._lead().report_step(step)
        return child

    def _on_signals(self, reader: socket.socket) -> None:
        for number in reader.recv(4096):
            if number in _STOP_SIGNALS:
                self._on_stop_signal(number)

    def _on_stop_signal(self, number: int) -> None:
        self._timeline.instant("signal", signal_name(number), "received")
        if self._verdict is not None:
            return
        # Whoever stops a job may signal every host: one that has heard of the stop from another
        # host has not been asked twice.
        again, self._signalled = self._signalled, True
        if again and self._stop is not None:
            self._log("entrypoint", f"received {signal_name(number)} again: killing everything")
            self._table.kill()
            return
        self._log("entrypoint", f"received {signal_name(number)}")
        if self._stop is None:
            stop = Stop(self._job.current_host, number)
            self._lead().report_stop(stop, time.monotonic())

    def _on_event(self, child: Child, event: Mapping[str, object]) -> None:
        if event["event"] == "failed":
            self._reported.setdefault(child, time.monotonic())
        elif event["event"] == "started":
            self._unheard.discard(child)
            if child.spec.role is Role.WORKER:
                self._let_kvstore_go()
            self._on_running()
        elif event["event"] == "stepped":
            self._lead().report_step(Step.STEPPED)
        elif event["event"] == "finished" and child.spec.role is Role.WORKER:
            self._log(child.spec.name, "the script finished")
            self._worker_status = 0
            self._done_at = time.monotonic()
            if self._stop is None:
                self._finish_work()

    def _record(self, child: Child, status: Optional[int]) -> None:
        spec, track = child.spec, self._tracks.pop(child, None)
        self._timeline.process(
            child.pid, spec.name, spec.role, child.started, status, child.signals, track
        )

    def _let_kvstore_go(self) -> None:
        for child in self._table.living(*_KVSTORE):
            child.let_go()

    def _on_running(self) -> None:
        if not self._unheard and self._timeline.current == "roles":
            self._timeline.phase("train")

    def _on_exit(self, child: Child) -> None:
        status = exit_status(child.returncode or 0)
        self._record(child, status)
        self._log(child.spec.name, f"ended with {_ending(child.returncode or 0)}")
        role = child.spec.role
        if role is Role.WORKER and self._done_at is None:
            self._worker_status = status
        if child.stopped:
            self._reported.pop(child, None)
            if self._stop is not None and role in _WORK:
                if role is not Role.WORKER:
                    self._worker_status = 128 + self._stop.signal
                self._finish_work()
        elif status != 0:
            self._report_exit(child)
        elif role is Role.FETCH:
            self._proceed(self._on_fetched)
        elif role is Role.INSTALL:
            self._proceed(self._on_installed)
        elif role is Role.WORKER:
            self._finish_work()

    def _proceed(self, step: Callable[[], None]) -> None:
        """Take the next step of the preparation, unless the job ends instead."""
        if self._verdict is None and self._stop is None:
            step()

    def _finish_work(self) -> None:
        if not self._finished:
            self._finished = True
            self._timeline.phase("hold")
            self._lead().report_step(Step.FINISHED)

    def _report_exit(self, child: Child) -> None:
        """Report the failure of a child, as it told it itself or as its exit tells it."""
        when = self._reported.pop(child, time.monotonic())
        failure = self._explain(child)
        self._log.error(child.spec.name, f"failed: {failure.reason}")
        child.stopped = True
        self._report_failure(failure, when, child)

    def _report_failure(self, failure: Failure, when: float, child: Optional[Child] = None) -> None:
        # The texts of a child are without secrets already; our own may name a path with one.
        shown = replace(failure, reason=self._log.redact(failure.reason))
        self._timeline.failure(shown, when, None if child is None else child.pid)
        self._lead().report_failure(failure, when)

    def _explain(self, child: Child) -> Failure:
        returncode = child.returncode
        told = child.failure
        reason, detail = "", child.stderr.text()
        if told is not None:
            reason = str(told.get("reason", ""))
            detail = str(told.get("detail", "")) or detail
        elif returncode is not None and returncode < 0:
            reason = f"killed by {signal_name(-returncode)}"
        else:
            reason = "ended without saying why"
        kills = cgroup.oom_kills()
        if kills is not None and self._oom_kills is not None and kills > self._oom_kills:
            limit = cgroup.memory_limit()
            size = "" if limit is None else f" of {limit / 2**20:.0f} MiB"
            memory = f"{result.OUT_OF_MEMORY}: the container's limit{size} was reached"
            reason = f"{memory} ({reason})"
        status = 1 if returncode is None else exit_status(returncode)
        # Here, since no other host knows what is a secret of this one.
        reason, detail = self._log.redact(reason), self._log.redact(detail)
        return Failure(self._job.current_host, child.spec.role, reason, status, detail)

    # What is watched.

    def _watch_frozen(self, now: float) -> None:
        for child in self._table.living():
            since = child.frozen_since
            if since is None or child.stopped:
                continue
            if child.spec.role not in _KVSTORE:
                if since > 0:
                    self._log.warning(child.spec.name, "is stopped (SIGSTOP); SIGCONT resumes it")
                    child.frozen_since = 0.0  # said once
            elif now - since >= FREEZE_GRACE:
                reason = f"frozen: stopped by a signal (SIGSTOP) for {now - since:.0f} s"
                child.stopped = True
                failure = Failure(self._job.current_host, child.spec.role, reason)
                self._report_failure(failure, since, child)

    def _free_from_barrier(self, now: float, done_at: float) -> float:
        """End a worker whose script finished after a stop, and that MXNet does not let go."""
        for child in self._table.living(Role.WORKER):
            if now - done_at < FAILURE_GRACE:
                return done_at + FAILURE_GRACE
            child.abandon()
        return now + 1.0

    def _look(self, now: float) -> None:
        """Look at what the processes use, for the timeline, and whether the worker gets on."""
        before = time.thread_time()
        try:
            living = self._table.living()
            seen = usage.measure({child.pid for child in living})
            for child in living:
                if child.pid in seen:
                    track = self._tracks.setdefault(child, Track(child.started))
                    track.add(now, seen[child.pid])
            if now - self._looked_at >= PROGRESS_PERIOD:
                self._look_at_kvstore()
                self._watch_progress(now, seen)
        finally:
            # Also after a defect in here: the others can only be told of it by turns of the loop.
            self._pace.spent(time.thread_time() - before, time.monotonic())

    def _watch_progress(self, now: float, seen: Mapping[int, Usage]) -> None:
        elapsed, self._looked_at = now - self._looked_at, now
        for child in self._table.living(Role.WORKER):
            used = seen.get(child.pid, Usage())
            busy = used.cpu - self._usage.cpu > _BUSY_SHARE * elapsed
            if busy or used.bytes != self._usage.bytes:
                self._active_at = now
            self._usage = used
        if not self._finished:
            self._lead().report_idle(now - self._active_at)

    def _look_at_kvstore(self) -> None:
        """Notice whether a worker has ever called on this host's server."""
        if not self._kvstore_used:
            servers = self._table.living(Role.SERVER)
            self._kvstore_used = any(process.has_callers(server.pid) for server in servers)

    def _watch_drain(self, now: float) -> float:
        left = self._table.living(Role.WORKER, *_KVSTORE)
        self._look_at_kvstore()
        if left and not self._kvstore_used and not self._table.living(Role.WORKER):
            self._kvstore_used = True  # said once
            self._log("entrypoint", "no worker used the kvstore; ending it")
            self._drain_until = min(self._drain_until, now + UNUSED_DRAIN)
        if left and self._stop is None and now >= self._drain_until:
            names = ", ".join(child.spec.name for child in left)
            self._log("entrypoint", f"ending what has not left by itself: {names}")
            self._table.stop(left, signal.SIGTERM, FAILURE_GRACE)
        if left:
            return now + 0.1 if self._stop is not None else max(now + 0.02, self._drain_until)
        sync = self._table.living(Role.SYNC)
        for child in sync:
            child.let_go()
        if sync or not self._table.sweep(now, FAILURE_GRACE):
            return now + 0.02
        self._drained = True
        try:
            if self._stop is None:
                result.prepare_success(self._job.output_dir)
        except JobError as error:
            failure = Failure(self._job.current_host, Role.ENTRYPOINT, str(error))
            self._report_failure(failure, now)
        else:
            self._lead().report_drained()
        return now

    # The end.

    def _abort(self, reason: str, trace: str) -> None:
        """Fail for a reason in the entrypoint itself; tell the others if that is still possible."""
        reason, trace = self._log.redact(reason), self._log.redact(trace)
        failure = Failure(self._job.current_host, Role.ENTRYPOINT, reason, None, trace)
        now = time.monotonic()
        deadline = now + coordination.REPORT_DEADLINE + FAILURE_GRACE
        with contextlib.suppress(Exception):
            self._timeline.failure(failure, now)
            if self._coordinator is not None:
                self._coordinator.report_failure(failure, now)
                while not self._over() and time.monotonic() < deadline:
                    self._turn()
        if self._verdict is None or self._verdict.outcome is not Outcome.FAILURE:
            self._verdict = Verdict(Outcome.FAILURE, failure)
        self._table.kill()
        while time.monotonic() < deadline and not self._table.sweep(time.monotonic(), 0.0):
            time.sleep(0.02)

    def _finish(self) -> int:
        assert self._verdict is not None
        job, verdict = self._job, self._verdict
        with contextlib.suppress(OSError):
            # A save that was cut short leaves nothing of its own to the model's archive.
            fileset.settle(job.model_dir)
        if verdict.outcome is Outcome.SUCCESS:
            try:
                result.commit_success(job.output_dir)
            except OSError as error:
                reason = f"cannot write the success file in {job.output_dir}: {error.strerror}"
                failure = Failure(job.current_host, Role.ENTRYPOINT, reason)
                self._timeline.failure(failure, time.monotonic())
                verdict = Verdict(Outcome.FAILURE, failure)
        seconds = time.monotonic() - self._started
        if verdict.failure is not None:
            trouble = result.write_failure(job.output_dir, self._log.redact(verdict.failure.text()))
            if trouble is not None:
                self._log.error("entrypoint", trouble)
            self._log.error(
                "entrypoint",
                result.last_words(verdict.failure, job.current_host, seconds, job.code_dir),
            )
        status = result.process_status(verdict, job.current_host, self._worker_status)
        word = {
            Outcome.SUCCESS: "the job SUCCEEDED",
            Outcome.STOP: "the job was STOPPED",
            Outcome.FAILURE: "the job failed",
        }[verdict.outcome]
        self._log("entrypoint", f"{word} after {seconds:.1f} s; exit status {status}")
        if self._coordinator is not None:
            self._coordinator.close()
        self._write_timeline(verdict, status)
        if self._watchdog is not None:
            self._watchdog.release()
        return status

    def _write_timeline(self, verdict: Verdict, status: int) -> None:
        self._timeline.phase(None)
        for child in self._table.living():
            self._record(child, None)
        if verdict.failure is not None:
            reason = self._log.redact(verdict.failure.reason)
            detail = self._log.redact(verdict.failure.detail)
            verdict = replace(
                verdict, failure=replace(verdict.failure, reason=reason, detail=detail)
            )
        about = {"job": self._job.job_name, "hosts": self._job.hosts, "exit status": status}
        self._timeline.write(self._job.output_data_dir, verdict, about)


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"{signal_name(-returncode)} (exit status {exit_status(returncode)})"
    return f"exit status {returncode}"
