"""One run of the roles, and its end, without processes: what is reported, when, and how often."""

import signal
from types import SimpleNamespace
from typing import Any, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.failure import FailureKind, Role
from sagemaker_mxnet_training.cluster.coordinator import PROGRESS_PERIOD
from sagemaker_mxnet_training.cluster.events import HostState, Stop
from sagemaker_mxnet_training.host.attempt import BARRIER_GRACE, Attempt, Drain
from sagemaker_mxnet_training.host.timeline import HostPhase, Timeline
from tests.support.fakes import FakeLog


class Process:
    """A child controlled by the test."""

    def __init__(self, role: Role, rank: Optional[int] = None) -> None:
        self.spec = SimpleNamespace(role=role, name=role.value, rank=rank)
        self.pid = 2**22 + 1  # no process has this number: nobody is connected to it
        self.stopped = False
        self.failure_kind: Optional[FailureKind] = None
        self.released = 0
        self.killed = 0

    def close_stdin(self) -> None:
        self.released += 1

    def signal(self, number: int, leader_only: bool) -> None:
        assert (number, leader_only) == (signal.SIGKILL, True)
        self.killed += 1


class Table:
    """The children that live, and what was asked of them."""

    def __init__(self, *children: Process) -> None:
        self.children = list(children)
        self.asked: List[List[str]] = []

    def living(self, *roles: Role) -> List[Process]:
        return [c for c in self.children if not roles or c.spec.role in roles]

    def stop(self, children: List[Process], number: int, grace: float) -> None:
        self.asked.append([child.spec.name for child in children])

    def sweep(self, now: float, grace: float) -> bool:
        return not self.children


class Host:
    """An attempt with all that it uses."""

    def __init__(self, *roles: Role) -> None:
        self.children = {role: Process(role) for role in roles}
        self.table = Table(*self.children.values())
        self.reported: List[HostState] = []
        self.timeline = Timeline("algo-1")
        job: Any = None
        log = self.log = FakeLog()
        self.lines = log.lines
        coordinator: Any = SimpleNamespace(report_state=self.reported.append)
        table: Any = self.table
        self.attempt = Attempt(job, log, self.timeline, table, coordinator)

    def child(self, role: Role) -> Any:
        return self.children[role]

    def drain(self, timeout: float) -> Drain:
        self.emptied = 0
        table: Any = self.table

        def on_empty() -> None:
            self.emptied += 1

        return Drain(self.attempt, table, self.log, timeout, on_empty)


def test_a_script_that_finishes_is_reported_once() -> None:
    host = Host(Role.WORKER)
    worker = host.child(Role.WORKER)
    host.attempt.on_script_finished(worker)
    host.attempt.on_exit(worker, 0)
    assert host.reported == [HostState.FINISHED]
    assert host.attempt.worker_status == 0
    assert host.timeline.current is HostPhase.HOLD


def test_the_status_of_a_finished_script_is_not_that_of_its_exit() -> None:
    """MXNet may crash while it is taken down, and a stop may have to kill it."""
    host = Host(Role.WORKER)
    host.attempt.stop = Stop("algo-1", 15)
    worker = host.child(Role.WORKER)
    host.attempt.on_script_finished(worker)
    assert host.reported == []
    worker.stopped = True
    host.attempt.on_exit(worker, 137)
    assert (host.attempt.worker_status, host.reported) == (0, [HostState.FINISHED])


@pytest.mark.parametrize("role", [Role.FETCH, Role.INSTALL])
def test_a_stop_before_the_script_has_the_status_of_its_signal(role: Role) -> None:
    host = Host(role)
    host.attempt.stop = Stop("algo-1", 2)
    host.child(role).stopped = True
    host.attempt.on_exit(host.child(role), 143)
    assert (host.attempt.worker_status, host.reported) == (130, [HostState.FINISHED])


class Ranks:
    """An attempt with two of Horovod's workers."""

    def __init__(self) -> None:
        self.host = Host()
        self.workers: Any = [Process(Role.WORKER, rank) for rank in (0, 1)]
        self.host.table.children += self.workers
        self.attempt = self.host.attempt
        self.attempt._workers = list(self.workers)
        self.finished: List[int] = []
        self.attempt._coordinator.report_rank_finished = self.finished.append  # type: ignore[method-assign]


def test_host_has_finished_when_all_its_workers_have() -> None:
    ranks = Ranks()
    ranks.attempt.on_script_finished(ranks.workers[1])
    ranks.attempt.on_exit(ranks.workers[1], 0)
    assert (ranks.finished, ranks.host.reported) == ([1], [])
    ranks.attempt.on_exit(ranks.workers[0], 0)
    assert (ranks.finished, ranks.host.reported) == ([1, 0], [HostState.FINISHED])
    assert ranks.attempt.worker_status == 0


def test_status_is_that_of_the_worker_that_failed_first() -> None:
    ranks = Ranks()
    ranks.attempt.on_exit(ranks.workers[0], 0)
    ranks.attempt.on_exit(ranks.workers[1], 137)
    assert (ranks.attempt.worker_status, ranks.host.reported) == (137, [])


def test_stop_waits_for_all_workers() -> None:
    ranks = Ranks()
    ranks.attempt.stop = Stop("algo-1", 15)
    for worker in ranks.workers:
        assert ranks.host.reported == []
        worker.stopped = True
        ranks.attempt.on_exit(worker, 143)
    assert (ranks.attempt.worker_status, ranks.host.reported) == (143, [HostState.FINISHED])
    assert ranks.finished == []


@pytest.mark.parametrize(("kind", "status"), [("peer", 143), ("exception", 1)])
def test_stop_explains_that_a_worker_lost_another_one(kind: str, status: int) -> None:
    ranks = Ranks()
    ranks.workers[0].failure_kind = FailureKind(kind)
    ranks.attempt.on_exit(ranks.workers[0], 1)
    ranks.attempt.stop = Stop("algo-1", 15)
    ranks.attempt.on_exit(ranks.workers[1], 143)
    assert ranks.attempt.worker_status == status


def test_other_workers_end_after_rank_0_wrote_the_checkpoint() -> None:
    ranks = Ranks()
    ranks.attempt.stop = Stop("algo-1", 15)
    ranks.attempt.checkpointing = True
    ranks.attempt.on_script_finished(ranks.workers[0])
    ranks.attempt.tick(1e9)
    assert ranks.workers[1].killed == 1
    for worker in ranks.workers:
        worker.stopped = True
        ranks.attempt.on_exit(worker, 137)
    assert (ranks.attempt.worker_status, ranks.host.reported) == (0, [HostState.FINISHED])


def test_a_failed_script_has_not_finished() -> None:
    host = Host(Role.WORKER)
    host.attempt.on_exit(host.child(Role.WORKER), 3)
    assert (host.attempt.worker_status, host.reported) == (3, [])


def test_the_kvstore_is_released_when_the_script_runs() -> None:
    host = Host(Role.SCHEDULER, Role.SERVER, Role.WORKER)
    host.attempt.on_started(host.child(Role.SERVER))
    assert host.child(Role.SCHEDULER).released == 0
    host.attempt.on_started(host.child(Role.WORKER))
    assert host.child(Role.SCHEDULER).released == 1
    assert host.child(Role.SERVER).released == 1


def test_the_first_step_ends_its_phase() -> None:
    host = Host()
    host.timeline.phase(HostPhase.ROLES)
    host.attempt.on_stepped()
    host.timeline.phase(None)
    names = [e["name"] for e in host.timeline._events if e.get("cat") == "phase"]
    assert names == ["roles", "first step", "train"]


def test_worker_in_the_exit_barrier_is_killed_only_after_a_stop() -> None:
    host = Host(Role.WORKER)
    worker = host.child(Role.WORKER)
    host.attempt.on_script_finished(worker)
    host.attempt.tick(1e9)
    assert worker.killed == 0
    host.attempt.stop = Stop("algo-1", 15)
    host.attempt.on_script_finished(worker)
    ended_at = host.attempt._ended_at[worker]
    assert host.attempt.tick(ended_at) == ended_at + BARRIER_GRACE
    assert worker.killed == 0
    host.attempt.tick(ended_at + BARRIER_GRACE)
    assert worker.killed == 1


def test_a_script_that_waits_for_others_leaves_with_status_0() -> None:
    host = Host(Role.WORKER)
    host.attempt.stop = Stop("algo-1", 15)
    host.attempt.end_script()
    host.attempt.tick(1e9)
    worker = host.child(Role.WORKER)
    assert worker.killed == 1
    worker.stopped = True
    host.attempt.on_exit(worker, 137)
    assert (host.attempt.worker_status, host.reported) == (0, [HostState.FINISHED])


def test_failed_script_keeps_its_status() -> None:
    host = Host(Role.WORKER)
    host.attempt.stop = Stop("algo-1", 15)
    worker = host.child(Role.WORKER)
    worker.stopped = True
    host.attempt.on_exit(worker, 1)
    host.attempt.end_script()
    assert host.attempt.worker_status == 1


def test_what_does_not_leave_is_ended_and_that_is_said_once() -> None:
    host = Host(Role.SCHEDULER, Role.SERVER)
    host.attempt.kvstore_used = True
    drain = host.drain(timeout=0.0)
    for turn in range(200):
        drain.tick(1e9 + turn / 50)
    assert host.lines == ["stopping processes that did not exit: scheduler, server"]
    assert host.table.asked == [["scheduler", "server"]]
    host.table.children.clear()
    drain.tick(2e9)
    drain.tick(2e9)
    assert host.emptied == 1


def test_unused_kvstore_is_ended_early_and_logged_once() -> None:
    host = Host(Role.SERVER)
    drain = host.drain(timeout=1e12)
    for turn in range(200):
        drain.tick(1e9 + turn)
    assert host.lines == ["no worker used the kvstore; stopping it"]
    assert host.table.asked == [["server"]]


def test_a_kvstore_that_was_used_unseen_leaves_with_nothing_said() -> None:
    """A short job has used it between two looks."""
    host = Host(Role.SCHEDULER)
    drain = host.drain(timeout=1e12)
    drain.tick(1.0)
    host.table.children.clear()
    drain.tick(1.5)
    assert (host.lines, host.emptied) == ([], 1)


def test_copies_to_s3_are_the_last_to_leave() -> None:
    host = Host(Role.WORKER, Role.SYNC)
    drain = host.drain(timeout=1e12)
    drain.tick(1.0)
    assert host.child(Role.SYNC).released == 0
    host.table.children.remove(host.child(Role.WORKER))
    drain.tick(2.0)
    assert host.child(Role.SYNC).released == 1
    assert host.emptied == 0
    drain.tick(2.0 + PROGRESS_PERIOD)
    assert host.lines == ["waiting for uploads to S3"]
    host.table.children.clear()
    drain.tick(3.0)
    assert host.emptied == 1


def test_after_a_stop_servers_are_ended_at_once() -> None:
    host = Host(Role.SERVER)
    host.attempt.stop = Stop("algo-1", 15)
    drain = host.drain(timeout=1e12)
    assert host.table.asked == [["server"]]
    drain.tick(1e15)
    assert host.lines == []


def test_late_stop_ends_servers_without_workers() -> None:
    """The worker may have been ended in MXNet's exit barrier: it has not left the kvstore."""
    host = Host(Role.WORKER, Role.SERVER)
    drain = host.drain(timeout=1e12)
    host.attempt.stop = Stop("algo-1", 15)
    drain.tick(1.0)
    assert host.table.asked == []
    host.table.children.remove(host.child(Role.WORKER))
    drain.tick(2.0)
    assert host.table.asked == [["server"]]


EVENTS = ("started", "stepped", "finished", "succeeded", "failed", "killed", "stop", "tick")


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_finish_is_always_reported_once_with_a_reason(events: List[str]) -> None:
    host = Host(Role.WORKER, Role.SERVER)
    attempt, worker = host.attempt, host.child(Role.WORKER)
    reason = False
    for number, event in enumerate(events):
        if event == "started":
            attempt.on_started(worker)
        elif event == "stepped":
            attempt.on_stepped()
        elif event == "finished":
            attempt.on_script_finished(worker)
            reason = reason or attempt.stop is None
        elif event == "stop":
            attempt.stop = Stop("algo-1", 15)
        elif event == "tick":
            attempt.tick(1e9 + number)
        else:
            worker.stopped = event == "killed"
            attempt.on_exit(worker, {"succeeded": 0, "failed": 3, "killed": 137}[event])
            reason = reason or event == "succeeded" or (worker.stopped and attempt.stop is not None)
        assert host.reported == ([HostState.FINISHED] if reason else [])
        assert attempt.finished == reason
        assert worker.killed == 0 or attempt.stop is not None
