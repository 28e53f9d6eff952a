"""A follower's coordinator, with a fake connection: what it reports, obeys, and decides alone."""

import selectors
from typing import Any, List, Optional

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster.coordinator import (
    GIVE_UP_DEADLINE,
    PROGRESS_PERIOD,
    REPORT_DEADLINE,
)
from sagemaker_mxnet_training.cluster.events import (
    DrainRoles,
    End,
    Failed,
    FirstStep,
    HostState,
    Note,
    Rendezvous,
    Reported,
    Restart,
    Start,
    Stop,
    StopRequested,
    StopScripts,
    Verdict,
    lost,
)
from sagemaker_mxnet_training.cluster.follower import Follower
from tests.support.fakes import (
    CoordinatorHarness,
    FakeLeaderConnection,
    FakeSupervisor,
    Idling,
    job,
)

STOP = Stop("algo-2", 15)
STOPPED = End(Verdict(Outcome.STOP))
BOOM = Failure("algo-2", Role.WORKER, "boom", FailureKind.EXCEPTION, 1)
LOST = lost("algo-1", "silent for 15 s")


class Side(CoordinatorHarness):
    """One follower, algo-2, and everything around it."""

    def __init__(self, supervisor: Optional[FakeSupervisor] = None, **settings: Any) -> None:
        super().__init__(supervisor)
        self.connection = FakeLeaderConnection()
        with selectors.DefaultSelector() as selector:
            self.follower = Follower(
                job("algo-2", **{"join_timeout": 60.0, **settings}),
                self.log,
                self.supervisor.obey,
                selector,
                self.clock,
                self._connect,
            )
        self.coordinator = self.supervisor.coordinator = self.follower

    def _connect(
        self,
        job: Any,
        log: Any,
        selector: Any,
        joined: Any,
        order: Any,
        lost: Any,
        refused: Any,
        clock: Any,
    ) -> Any:
        self._joined, self._order, self._lost, self.refuse = joined, order, lost, refused
        return self.connection

    def join(self) -> "Side":
        self.connection.joined = True
        self.connection.own_address = "10.0.0.2"
        self._joined("10.0.0.1")
        return self

    def order(self, *orders: Any) -> None:
        for order in orders:
            self._order(order)

    def lose(self, failure: Failure = LOST) -> None:
        self.connection.joined = False
        self._lost(failure)

    @property
    def sent(self) -> List[Any]:
        return self.connection.sent


def reported(state: HostState, attempt: int = 1) -> Reported:
    return Reported(state, "algo-2", attempt)


def test_a_job_in_which_all_goes_well() -> None:
    side = Side().join()
    side.follower.report_ready("")
    side.order(Start(1, "", Rendezvous("10.0.0.1", 8000, "", 2)))
    assert side.orders == [Start(1, "", Rendezvous("10.0.0.1", 8000, "10.0.0.2", 2))]
    side.order(FirstStep())
    side.follower.report_state(HostState.FINISHED)
    side.order(DrainRoles())
    side.follower.report_state(HostState.DRAINED)
    side.order(End(Verdict(Outcome.SUCCESS)))
    assert side.orders[1:] == [FirstStep(), DrainRoles(), End(Verdict(Outcome.SUCCESS))]
    assert side.sent == [
        reported(HostState.READY),
        reported(HostState.FINISHED),
        reported(HostState.DRAINED),
    ]
    assert side.connection.left, "it said goodbye"
    side.lose()
    assert side.end() == Verdict(Outcome.SUCCESS)


def test_what_is_reported_before_joining_arrives_with_its_age() -> None:
    side = Side()
    side.follower.report_state(HostState.FETCH)
    side.follower.report_failure(BOOM, side.clock.now - 0.5)
    side.follower.report_idle(5.0)
    side.clock.now += 1.0
    side.join()
    assert side.sent == [reported(HostState.FETCH), Failed(BOOM, -1.5)]


def test_every_order_is_obeyed_once() -> None:
    side = Side().join()
    for order in (
        FirstStep(),
        StopScripts(STOP),
        DrainRoles(),
        End(Verdict(Outcome.STOP)),
    ):
        side.order(order, order)
    assert side.orders == [FirstStep(), StopScripts(STOP), DrainRoles(), STOPPED]


def test_nothing_is_started_once_this_host_stops() -> None:
    side = Side().join()
    side.follower.report_stop(STOP, side.clock.now)
    side.order(Start(1))
    assert side.orders == [StopScripts(STOP)]


def test_stop_asks_the_script_before_the_leader_answers() -> None:
    side = Side(Idling()).join()
    side.follower.report_stop(STOP, side.clock.now)
    assert side.sent == [StopRequested(Stop("algo-2", 15), 0.0), reported(HostState.FINISHED)]
    side.wait(60)
    assert side.orders == [StopScripts(STOP)]
    side.order(StopScripts(STOP), DrainRoles(), End(Verdict(Outcome.STOP)))
    assert side.orders == [StopScripts(STOP), DrainRoles(), STOPPED]


@pytest.mark.parametrize("reached", ["nothing", "finished", DrainRoles(), "drained"])
@pytest.mark.parametrize("asked", ["here", "elsewhere"])
def test_a_stop_goes_on_without_the_leader_wherever_that_is_lost(reached: str, asked: str) -> None:
    side = Side().join()
    if asked == "here":
        side.follower.report_stop(STOP, side.clock.now)
    else:
        side.order(StopScripts(STOP))
    steps: List[Any] = [
        ("finished", lambda: side.follower.report_state(HostState.FINISHED)),
        (DrainRoles(), lambda: side.order(DrainRoles())),
        ("drained", lambda: side.follower.report_state(HostState.DRAINED)),
    ]
    names = ["nothing", *(name for name, _ in steps)]
    for name, step in steps[: names.index(reached)]:
        step()
        assert STOPPED not in side.orders, name
    side.lose()
    if reached == "nothing":
        assert side.orders == [StopScripts(STOP)]
        side.follower.report_state(HostState.FINISHED)
    if reached != "drained":
        assert side.orders == [StopScripts(STOP), DrainRoles()]
        side.follower.report_state(HostState.DRAINED)
    assert side.orders == [StopScripts(STOP), DrainRoles(), STOPPED]


def test_stop_before_joining_does_not_wait_for_the_leader() -> None:
    for side in (Side(Idling()), Side(Idling())):
        side.follower.report_ready("")
        side.follower.report_stop(STOP, side.clock.now)
        assert side.orders == [StopScripts(STOP), DrainRoles(), STOPPED]
        assert side.follower.delivered(side.clock.now)


def test_a_leader_that_comes_during_a_stop_hears_all_of_it() -> None:
    side = Side()
    side.follower.report_stop(STOP, side.clock.now)
    side.join()
    side.follower.report_state(HostState.FINISHED)
    assert side.sent == [StopRequested(Stop("algo-2", 15), 0.0), reported(HostState.FINISHED)]
    assert side.orders == [StopScripts(STOP)], "the leader decides"
    side.order(StopScripts(STOP), DrainRoles())
    assert side.orders == [StopScripts(STOP), DrainRoles()]


@pytest.mark.parametrize("joined", [True, False])
def test_giving_up_ends_a_stop_at_once(joined: bool) -> None:
    side = Side().join() if joined else Side()
    side.follower.report_stop(STOP, side.clock.now)
    side.clock.now += 1.0
    side.follower.give_up()
    assert side.orders == [StopScripts(STOP), STOPPED]
    assert side.connection.left
    side.connection.undelivered = True
    assert not side.follower.delivered(side.clock.now)
    assert side.follower.delivered(side.clock.now + GIVE_UP_DEADLINE)


def test_failure_before_a_stop_is_the_cause_without_a_leader() -> None:
    side = Side()
    side.follower.report_failure(BOOM, side.clock.now)
    side.clock.now += 0.1
    side.follower.report_stop(STOP, side.clock.now)
    side.wait(1.0)
    assert side.cause() == BOOM


def test_a_failure_after_a_stop_ends_nothing() -> None:
    """A dead server does not kill a script that is writing its checkpoint."""
    for leader_is_there in (True, False):
        side = Side().join()
        side.order(StopScripts(STOP))
        side.clock.now += 1.0
        side.follower.report_failure(BOOM, side.clock.now)
        if not leader_is_there:
            side.lose()
        side.wait(60)
        assert side.orders == [StopScripts(STOP)]


def test_a_lost_leader_is_the_cause_unless_this_host_has_one() -> None:
    side = Side().join()
    side.lose()
    assert side.cause() == LOST
    side = Side().join()
    side.follower.report_failure(BOOM, side.clock.now)
    side.lose()
    assert side.cause() == BOOM


@pytest.mark.parametrize("joined", [True, False])
def test_a_failure_ends_this_host_if_nobody_answers(joined: bool) -> None:
    side = Side().join() if joined else Side()
    side.follower.report_failure(BOOM, side.clock.now)
    side.wait(REPORT_DEADLINE - 0.5)
    assert side.orders == []
    side.wait(0.5)
    assert side.cause() == BOOM


def test_the_leader_has_its_time_from_when_a_failure_is_reported() -> None:
    """A server has been frozen for a while when that counts as a failure."""
    side = Side().join()
    side.follower.report_failure(BOOM, side.clock.now - REPORT_DEADLINE)
    side.wait(REPORT_DEADLINE - 0.5)
    assert side.orders == []


def test_joining_has_a_deadline_and_is_logged_meanwhile() -> None:
    side = Side()
    obstacle = side.connection.obstacle = "algo-1 at 10.0.0.1:8001: Connection refused"
    side.wait(PROGRESS_PERIOD)
    assert side.log.lines == [f"waiting to join algo-1, 45 s left: {obstacle}"]
    side.wait(45.0)
    reason = f"could not be joined within 60 s: {obstacle}"
    assert side.cause() == Failure("algo-1", Role.ENTRYPOINT, reason, FailureKind.JOIN)


def test_host_that_cannot_be_let_in_ends_with_the_reason() -> None:
    side = Side()
    failure = Failure("algo-2", Role.ENTRYPOINT, "does not agree", FailureKind.JOIN)
    side.refuse(failure)
    assert side.cause() == failure


def test_notes_of_the_leader_reach_the_log() -> None:
    side = Side().join()
    side.order(Note("waiting for algo-3"))
    assert side.log.lines[-1] == "waiting for algo-3"


# Further attempts.


def test_another_attempt_makes_everything_new() -> None:
    side = Side().join()
    side.follower.report_ready("")
    side.order(Start(1), FirstStep())
    side.follower.report_failure(BOOM, side.clock.now)
    side.order(Restart(2, BOOM), Restart(2, BOOM))
    side.wait(60)
    side.follower.report_ready("")
    side.order(Start(2), FirstStep())
    assert side.orders == [Start(1), FirstStep(), Restart(2, BOOM), Start(2), FirstStep()]
    assert side.sent[-1] == reported(HostState.READY, 2)


def test_the_start_of_another_attempt_is_not_obeyed() -> None:
    side = Side().join()
    side.order(Restart(3, BOOM), Start(2))
    assert side.orders == [Restart(3, BOOM)]


def test_a_stop_that_crosses_a_restart_stays() -> None:
    side = Side().join()
    side.follower.report_stop(STOP, side.clock.now)
    side.order(Restart(2, BOOM), StopScripts(STOP), Start(2))
    assert side.orders == [StopScripts(STOP), Restart(2, BOOM)]
    side.lose()
    side.follower.report_state(HostState.FINISHED)
    side.follower.report_state(HostState.DRAINED)
    assert side.orders[2:] == [DrainRoles(), End(Verdict(Outcome.STOP, None, 1))]
