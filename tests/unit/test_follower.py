"""A follower's coordinator, with a fake channel: what it tells, obeys, and decides alone."""

from typing import Any, List, Optional

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster import messages
from sagemaker_mxnet_training.cluster.channel import (
    PeerDiffers,
    PeerJoined,
    PeerLeft,
    PeerLost,
    PeerMessage,
    Refused,
)
from sagemaker_mxnet_training.cluster.coordination import (
    GIVE_UP_DEADLINE,
    PROGRESS_PERIOD,
    REPORT_DEADLINE,
)
from sagemaker_mxnet_training.cluster.events import (
    Command,
    Do,
    End,
    Rendezvous,
    Restart,
    Start,
    Step,
    Stop,
    StopScripts,
    Verdict,
    lost,
)
from sagemaker_mxnet_training.cluster.follower import Follower
from sagemaker_mxnet_training.cluster.joining import DISAGREEMENT_FORGOTTEN, FOLLOWER_GRACE
from tests.coordination import (
    FakeChannel,
    FakeClock,
    FakeLog,
    FakeLookup,
    FakeSupervisor,
    Idle,
    job,
    kind,
)

STOP = Stop("algo-2", 15)
STOPPED = ("end", Verdict(Outcome.STOP))
BOOM = Failure("algo-2", Role.WORKER, "boom", FailureKind.EXCEPTION, 1)


class Side:
    """One follower, algo-2, and everything around it."""

    def __init__(self, supervisor: Optional[FakeSupervisor] = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.log = FakeLog()
        self.supervisor = supervisor or FakeSupervisor()
        self.channel: Any = None
        self.lookup: Any = None
        self.follower = Follower(
            job("algo-2", **{"join_timeout": 60.0, **settings}),
            self.log,
            self.supervisor,
            self._look_up,
            self._open_channel,
            self.clock,
        )
        self.supervisor.coordinator = self.follower

    def _look_up(self, on_answer: Any) -> Any:
        self.lookup = FakeLookup(on_answer)
        return self.lookup

    def _open_channel(self, address: str, post: Any) -> Any:
        self.channel = FakeChannel(post)
        return self.channel

    def resolve(self) -> "Side":
        self.lookup.answer("10.0.0.1")
        return self

    def join(self) -> "Side":
        self.resolve()
        self.channel.post(PeerJoined("algo-1", "10.0.0.1", "10.0.0.2"))
        return self

    def order(self, *orders: Any) -> None:
        for order in orders:
            self.channel.post(PeerMessage("algo-1", messages.encode(order)))

    def lose(self) -> None:
        self.channel.post(PeerLost("algo-1", "silent for 15 s"))

    def wait(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass, with a turn of the loop now and then."""
        for _ in range(round(seconds / step)):
            self.clock.now += step
            self.follower.tick(self.clock.now)

    @property
    def orders(self) -> List[Any]:
        return self.supervisor.orders

    @property
    def sent(self) -> List[Any]:
        return [message for _, message in self.channel.sent]

    def end(self) -> Verdict:
        """Return the verdict, of which there is one."""
        ends = [order[1] for order in self.orders if kind(order) == "end"]
        assert len(ends) == 1, self.orders
        return ends[0]

    def cause(self) -> Failure:
        failure = self.end().failure
        assert failure is not None
        return failure


def test_a_job_in_which_all_goes_well() -> None:
    side = Side().join()
    side.follower.report_ready("")
    side.order(Start(1, "", Rendezvous("10.0.0.1", 8000, "", 2)))
    assert side.orders == [Start(1, "", Rendezvous("10.0.0.1", 8000, "10.0.0.2", 2))]
    side.order(Do(Command.FIRST_STEP))
    side.follower.report_step(Step.FINISHED)
    side.order(Do(Command.DRAIN))
    side.follower.report_step(Step.DRAINED)
    side.order(End(Verdict(Outcome.SUCCESS)))
    assert side.orders[1:] == ["stepped", "drain", ("end", Verdict(Outcome.SUCCESS))]
    assert side.sent == [
        messages.StepReport(Step.READY, 1),
        messages.StepReport(Step.FINISHED, 1),
        messages.StepReport(Step.DRAINED, 1),
    ]
    assert side.channel.left, "it said goodbye"
    side.lose()
    assert side.end() == Verdict(Outcome.SUCCESS)


def test_what_is_reported_before_joining_arrives_with_its_age() -> None:
    side = Side()
    side.follower.report_step(Step.FETCH)
    side.follower.report_failure(BOOM, side.clock.now - 0.5)
    side.follower.report_idle(5.0)
    side.clock.now += 1.0
    side.join()
    assert side.sent == [messages.StepReport(Step.FETCH, 1), messages.FailureReport(BOOM, 1, 1.5)]


def test_every_order_is_obeyed_once() -> None:
    side = Side().join()
    for order in (
        Do(Command.FIRST_STEP),
        StopScripts(STOP),
        Do(Command.DRAIN),
        End(Verdict(Outcome.STOP)),
    ):
        side.order(order, order)
    assert side.orders == ["stepped", ("stop", STOP), "drain", STOPPED]


def test_nothing_is_started_once_this_host_stops() -> None:
    side = Side().join()
    side.follower.report_stop(STOP, side.clock.now)
    side.order(Start(1))
    assert side.orders == [("stop", STOP)]


def test_a_stop_asks_the_script_at_once_and_leaves_the_rest_to_the_leader() -> None:
    side = Side(Idle()).join()
    side.follower.report_stop(STOP, side.clock.now)
    assert side.sent == [messages.StopReport(15, 0.0), messages.StepReport(Step.FINISHED, 1)]
    side.wait(60)
    assert side.orders == [("stop", STOP)]
    side.order(StopScripts(STOP), Do(Command.DRAIN), End(Verdict(Outcome.STOP)))
    assert side.orders == [("stop", STOP), "drain", STOPPED]


@pytest.mark.parametrize("reached", ["nothing", "finished", "drain", "drained"])
@pytest.mark.parametrize("asked", ["here", "elsewhere"])
def test_a_stop_goes_on_without_the_leader_wherever_that_is_lost(reached: str, asked: str) -> None:
    side = Side().join()
    if asked == "here":
        side.follower.report_stop(STOP, side.clock.now)
    else:
        side.order(StopScripts(STOP))
    steps: List[Any] = [
        ("finished", lambda: side.follower.report_step(Step.FINISHED)),
        ("drain", lambda: side.order(Do(Command.DRAIN))),
        ("drained", lambda: side.follower.report_step(Step.DRAINED)),
    ]
    names = ["nothing", *(name for name, _ in steps)]
    for name, step in steps[: names.index(reached)]:
        step()
        assert "end" not in map(kind, side.orders), name
    side.lose()
    if reached == "nothing":
        assert side.orders == [("stop", STOP)]
        side.follower.report_step(Step.FINISHED)
    if reached != "drained":
        assert side.orders == [("stop", STOP), "drain"]
        side.follower.report_step(Step.DRAINED)
    assert side.orders == [("stop", STOP), "drain", STOPPED]


def test_a_host_that_stops_before_it_has_joined_waits_for_no_leader() -> None:
    for side in (Side(Idle()), Side(Idle()).resolve()):
        side.follower.report_ready("")
        side.follower.report_stop(STOP, side.clock.now)
        assert side.orders == [("stop", STOP), "drain", STOPPED]
        assert side.follower.settled(side.clock.now)


def test_a_leader_that_comes_during_a_stop_hears_all_of_it() -> None:
    side = Side()
    side.follower.report_stop(STOP, side.clock.now)
    side.join()
    side.follower.report_step(Step.FINISHED)
    assert side.sent == [messages.StopReport(15, 0.0), messages.StepReport(Step.FINISHED, 1)]
    assert side.orders == [("stop", STOP)], "the leader decides"
    side.order(StopScripts(STOP), Do(Command.DRAIN))
    assert side.orders == [("stop", STOP), "drain"]


@pytest.mark.parametrize("joined", [True, False])
def test_giving_up_ends_a_stop_at_once(joined: bool) -> None:
    side = Side().join() if joined else Side().resolve()
    side.follower.report_stop(STOP, side.clock.now)
    side.clock.now += 1.0
    side.follower.give_up()
    assert side.orders == [("stop", STOP), STOPPED]
    assert side.channel.left
    side.channel.undelivered = True
    assert not side.follower.settled(side.clock.now)
    assert side.follower.settled(side.clock.now + GIVE_UP_DEADLINE)


def test_a_failure_before_a_stop_is_the_cause_without_a_leader_too() -> None:
    side = Side().resolve()
    side.follower.report_failure(BOOM, side.clock.now)
    side.clock.now += 0.1
    side.follower.report_stop(STOP, side.clock.now)
    side.wait(1.0)
    assert side.cause() == BOOM


def test_a_failure_after_a_stop_ends_nothing() -> None:
    """A script that writes its checkpoint must not be killed for a server that died."""
    for leader_is_there in (True, False):
        side = Side().join()
        side.order(StopScripts(STOP))
        side.clock.now += 1.0
        side.follower.report_failure(BOOM, side.clock.now)
        if not leader_is_there:
            side.lose()
        side.wait(60)
        assert side.orders == [("stop", STOP)]


def test_a_lost_leader_is_the_cause_unless_this_host_has_one() -> None:
    for reason, event in (
        ("silent for 15 s", PeerLost("algo-1", "silent for 15 s")),
        ("it left before the job had ended", PeerLeft("algo-1")),
    ):
        side = Side().join()
        side.channel.post(event)
        assert side.cause() == lost("algo-1", reason)
    side = Side().join()
    side.follower.report_failure(BOOM, side.clock.now)
    side.lose()
    assert side.cause() == BOOM


@pytest.mark.parametrize("joined", [True, False])
def test_a_failure_ends_this_host_if_nobody_answers(joined: bool) -> None:
    side = Side().join() if joined else Side().resolve()
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


def test_joining_has_a_deadline_and_is_told_meanwhile() -> None:
    side = Side().resolve()
    side.channel.obstacle = "its connection failed: Connection refused"
    side.wait(PROGRESS_PERIOD)
    assert side.log.lines == [
        "waiting to join algo-1, 45 s left: on port 8001, algo-1: its connection failed: "
        "Connection refused"
    ]
    side.wait(45.0)
    assert side.cause().kind is FailureKind.JOIN
    assert side.cause().reason == (
        "could not be joined within 60 s: on port 8001, algo-1: its connection failed: "
        "Connection refused"
    )


def test_a_name_that_can_never_resolve_ends_the_wait_at_once() -> None:
    side = Side()
    side.lookup.invalid = True
    side.lookup.obstacle = "the name a..b does not resolve (not a host name)"
    side.lookup.answer("")
    assert side.cause().kind is FailureKind.JOIN
    assert side.cause().reason == (
        "cannot be joined: the name a..b does not resolve (not a host name)"
    )


def test_an_answer_after_the_end_opens_no_channel() -> None:
    side = Side(Idle())
    side.follower.report_stop(STOP, side.clock.now)
    side.resolve()
    assert side.channel is None


def differ(side: Side, seconds: float, difference: str = "hyperparameters") -> None:
    """Let the leader refuse this host once a second, for some seconds."""
    for _ in range(round(seconds)):
        side.channel.post(PeerDiffers("algo-1", "10.0.0.1", difference))
        side.wait(1.0)


def test_a_host_that_was_given_another_job_ends_soon_and_says_in_what() -> None:
    side = Side().resolve()
    differ(side, FOLLOWER_GRACE + 1)
    assert side.cause().kind is FailureKind.JOIN
    assert side.cause().headline() == (
        "algo-2: entrypoint failed: does not agree with algo-1 on the job: they were given "
        "different hyperparameters; give all hosts the same"
    )


def test_a_disagreement_that_ends_is_forgotten() -> None:
    """The leader of an earlier job was there, and then this job's."""
    side = Side().resolve()
    differ(side, FOLLOWER_GRACE - 1)
    side.wait(DISAGREEMENT_FORGOTTEN + 1)
    differ(side, FOLLOWER_GRACE - 1)
    assert side.orders == []
    side.join()
    side.wait(60)
    assert side.orders == []


def test_a_refused_host_ends_with_the_leaders_reason() -> None:
    side = Side().resolve()
    side.channel.post(Refused("algo-2 is taken by a live member"))
    assert side.cause().kind is FailureKind.JOIN
    assert side.cause().reason == ("algo-1 refused this host: algo-2 is taken by a live member")


def test_a_wrong_message_is_logged_and_changes_nothing() -> None:
    side = Side().join()
    side.channel.post(PeerMessage("algo-1", {"type": "start", "rendezvous": 5}))
    side.order(messages.StepReport(Step.DRAINED, 1))
    assert side.orders == []
    assert len([line for line in side.log.lines if "sent a wrong message" in line]) == 2


def test_notes_of_the_leader_reach_the_log() -> None:
    side = Side().join()
    side.order(messages.Note("waiting for algo-3"))
    assert side.log.lines[-1] == "waiting for algo-3"


# Further attempts.


def test_another_attempt_makes_everything_new() -> None:
    side = Side().join()
    side.follower.report_ready("")
    side.order(Start(1), Do(Command.FIRST_STEP))
    side.follower.report_failure(BOOM, side.clock.now)
    side.order(Restart(2, BOOM), Restart(2, BOOM))
    side.wait(60)
    side.follower.report_ready("")
    side.order(Start(2), Do(Command.FIRST_STEP))
    assert side.orders == [Start(1), "stepped", Restart(2, BOOM), Start(2), "stepped"]
    assert side.sent[-1] == messages.StepReport(Step.READY, 2)


def test_the_start_of_another_attempt_is_not_obeyed() -> None:
    side = Side().join()
    side.order(Restart(3, BOOM), Start(2))
    assert side.orders == [Restart(3, BOOM)]


def test_a_stop_that_crosses_a_restart_stays() -> None:
    side = Side().join()
    side.follower.report_stop(STOP, side.clock.now)
    side.order(Restart(2, BOOM), StopScripts(STOP), Start(2))
    assert side.orders == [("stop", STOP), Restart(2, BOOM)]
    side.lose()
    side.follower.report_step(Step.FINISHED)
    side.follower.report_step(Step.DRAINED)
    assert side.orders[2:] == ["drain", ("end", Verdict(Outcome.STOP, None, 1))]


def test_a_leader_that_may_come_back_is_waited_for() -> None:
    side = Side(rejoin_timeout=60.0).join()
    side.order(Start(1))
    side.lose()
    away = lost("algo-1", "silent for 15 s")
    assert side.orders == [Start(1), Restart(2, away)]
    side.follower.report_ready("")
    side.join()
    assert side.sent == [messages.StepReport(Step.READY, 2)]
    side.order(Restart(2, lost("algo-1", "it was started again")), Start(2))
    assert side.orders[2:] == [Start(2)]


def test_a_leader_that_does_not_come_back_is_the_cause() -> None:
    side = Side(rejoin_timeout=60.0).join()
    side.order(Restart(2, BOOM))
    side.lose()
    side.wait(61.0)
    cause = lost("algo-1", "silent for 15 s")
    assert side.orders[-1] == ("end", Verdict(Outcome.FAILURE, cause, 2, BOOM.headline()))
