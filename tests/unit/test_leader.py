"""The leader's coordinator, with a fake channel: what it decides is told to whom it must be."""

from dataclasses import replace
from typing import Any, List, Optional

import pytest

from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster import messages
from sagemaker_mxnet_training.cluster.channel import (
    PeerDiffers,
    PeerJoined,
    PeerLeft,
    PeerLost,
    PeerMessage,
    Stranger,
)
from sagemaker_mxnet_training.cluster.coordination import (
    GIVE_UP_DEADLINE,
    PROGRESS_PERIOD,
    REPORT_DEADLINE,
)
from sagemaker_mxnet_training.cluster.decision import VERDICT_DELAY
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
from sagemaker_mxnet_training.cluster.joining import (
    CALLERS_LIMIT,
    DISAGREEMENT_FORGOTTEN,
    LEADER_GRACE,
    JoinWatch,
)
from sagemaker_mxnet_training.cluster.keys import HYPERPARAMETERS, SECRET, JobKeys
from sagemaker_mxnet_training.cluster.leader import Leader
from sagemaker_mxnet_training.cluster.members import Members
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

STOP = Stop("algo-1", 15)
STOPPED = ("end", Verdict(Outcome.STOP))
BOOM = Failure("algo-2", Role.WORKER, "boom", FailureKind.EXCEPTION, 1)


class FakeGuard:
    """A guard of the scheduler's port, which is 8000, or is not to be had."""

    def __init__(self, until: float = 0.0, conflict: str = "", taken: str = "") -> None:
        self.until = until
        self.conflict = conflict
        self._taken = taken
        self.closed = False

    def release(self, log: Any) -> int:
        self.close()
        if self._taken:
            raise NetworkError(self._taken)
        return 8000

    def close(self) -> None:
        self.closed = True


class Side:
    """The leader, algo-1, and everything around it."""

    def __init__(
        self,
        hosts: int = 2,
        supervisor: Optional[FakeSupervisor] = None,
        guard: Any = None,
        secret: bool = False,
        **settings: Any,
    ) -> None:
        self.clock = FakeClock()
        self.log = FakeLog()
        self.supervisor = supervisor or FakeSupervisor()
        self.lookups: Any = {}
        self.channel: Any = None
        self.job = job("algo-1", hosts, **{"join_timeout": 60.0, **settings})
        self.keys = JobKeys(b"", {}, secret)
        self.leader = Leader(
            self.job,
            self.log,
            self.supervisor,
            "0.0.0.0",
            guard,
            self._open_members if hosts > 1 else None,
            lambda address: 12345,
            self.clock,
        )
        self.supervisor.coordinator = self.leader

    def _look_up(self, host: str) -> Any:
        self.lookups[host] = FakeLookup()
        return self.lookups[host]

    def _open_members(self, leader: Leader) -> Members:
        timeout = self.job.settings.join_timeout
        joining = JoinWatch(self.keys, "algo-1", timeout, self._look_up, self.clock())
        return Members(self.log, joining, leader, self._open_channel, self.clock)

    def _open_channel(self, post: Any) -> Any:
        self.channel = FakeChannel(post)
        return self.channel

    def join(self, *hosts: str) -> "Side":
        for host in hosts or ("algo-2",):
            self.channel.post(PeerJoined(host, "10.0.0.2", "10.0.0.1"))
        return self

    def train(self, hosts: int = 2) -> "Side":
        """Let everybody join and get ready."""
        self.leader.report_ready("")
        for number in range(2, hosts + 1):
            self.join(f"algo-{number}")
            self.hear(f"algo-{number}", messages.StepReport(Step.READY, 1))
        return self

    def hear(self, host: str, *reports: Any) -> None:
        for report in reports:
            self.channel.post(PeerMessage(host, messages.encode(report)))

    def wait(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass, with a turn of the loop now and then."""
        for _ in range(round(seconds / step)):
            self.clock.now += step
            self.leader.tick(self.clock.now)

    @property
    def orders(self) -> List[Any]:
        return self.supervisor.orders

    def sent(self) -> List[Any]:
        """Return what was sent since the last time."""
        sent, self.channel.sent = self.channel.sent, []
        return sent

    def kinds(self) -> List[str]:
        return [kind(order) for order in self.orders]

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
    side = Side(guard=FakeGuard(), servers_per_host=2).train()
    rendezvous = Rendezvous("10.0.0.1", 8000, "10.0.0.1", 2)
    assert side.orders == [Start(1, "", rendezvous)]
    side.hear("algo-2", messages.StepReport(Step.STEPPED, 1))
    side.leader.report_step(Step.FINISHED)
    assert "algo-1 finished; still training: algo-2" in side.log.lines
    side.hear("algo-2", messages.StepReport(Step.FINISHED, 1), messages.StepReport(Step.DRAINED, 1))
    side.leader.report_step(Step.DRAINED)
    success = Verdict(Outcome.SUCCESS)
    assert side.orders[1:] == ["stepped", "drain", ("end", success)]
    expected = [
        Start(1, "", Rendezvous("10.0.0.1", 8000, "", 2)),
        Do(Command.FIRST_STEP),
        Do(Command.DRAIN),
        End(success),
    ]
    assert side.sent() == [("*", message) for message in expected]
    assert not side.leader.settled(side.clock.now), "algo-2 has not left yet"
    side.channel.post(PeerLeft("algo-2"))
    assert side.leader.settled(side.clock.now)
    side.leader.close()
    assert side.channel.closed


def test_a_host_alone_needs_no_network() -> None:
    side = Side(hosts=1, supervisor=Idle())
    side.leader.report_ready("")
    side.leader.report_step(Step.FINISHED)
    assert side.orders == [Start(1), "drain", ("end", Verdict(Outcome.SUCCESS))]
    assert side.leader.settled(side.clock.now)


def test_orders_that_lead_to_more_are_carried_out_in_turn() -> None:
    """A supervisor without processes reports while it is being told."""
    side = Side(supervisor=Idle()).join()
    side.leader.report_stop(STOP, side.clock.now)
    assert side.orders == [("stop", STOP)]
    side.hear("algo-2", messages.StepReport(Step.FINISHED, 1), messages.StepReport(Step.DRAINED, 1))
    assert side.orders == [("stop", STOP), "drain", STOPPED]
    assert [message for _, message in side.sent()] == [
        StopScripts(STOP),
        Do(Command.DRAIN),
        End(Verdict(Outcome.STOP)),
    ]


def test_the_roles_start_when_the_port_has_been_guarded_for_long_enough() -> None:
    side = Side(guard=FakeGuard(until=1000.3)).train()
    assert side.orders == []
    assert side.leader.tick(1000.1) == 1000.3
    side.wait(0.5)
    assert side.kinds() == ["start"]


def test_a_port_that_cannot_be_had_is_a_failure_that_the_others_hear_of() -> None:
    for guard in (FakeGuard(conflict="port 8000 is taken"), FakeGuard(taken="port 8000 is taken")):
        side = Side(guard=guard).train()
        side.wait(VERDICT_DELAY + 0.5)
        assert side.cause() == Failure(
            "algo-1", Role.SCHEDULER, "port 8000 is taken", kind=FailureKind.NETWORK
        )
        assert side.sent()[-1] == ("*", End(side.end()))
        side.leader.close()
        assert guard.closed


def test_the_age_of_what_others_report_decides_what_came_first() -> None:
    side = Side().train()
    late = Failure("algo-1", Role.WORKER, "lost its peer", FailureKind.EXCEPTION)
    side.leader.report_failure(late, side.clock.now)
    side.clock.now += 0.1
    side.hear("algo-2", messages.FailureReport(BOOM, 1, 0.2))
    side.wait(0.5)
    assert side.cause() == BOOM


def test_a_stop_on_any_host_stops_all() -> None:
    side = Side(hosts=3).train(3)
    side.sent()
    side.hear("algo-3", messages.StopReport(2, 0.0))
    stop = Stop("algo-3", 2)
    assert side.orders[1:] == [("stop", stop)]
    assert side.sent() == [("*", StopScripts(stop))]


@pytest.mark.parametrize("leaves", [PeerLost("algo-2", "silent for 15 s"), PeerLeft("algo-2")])
def test_a_stop_does_not_wait_for_a_host_that_leaves(leaves: Any) -> None:
    side = Side(supervisor=Idle()).train()
    side.leader.report_stop(STOP, side.clock.now)
    assert side.orders[1:] == [("stop", STOP)]
    side.channel.post(leaves)
    assert side.orders[1:] == [("stop", STOP), "drain", STOPPED]
    assert side.leader.settled(side.clock.now)


def test_a_stop_does_not_wait_for_hosts_that_never_came_but_tells_them_if_they_do() -> None:
    side = Side(supervisor=Idle())
    side.leader.report_stop(STOP, side.clock.now)
    assert side.orders == [("stop", STOP), "drain", STOPPED]
    assert not side.leader.settled(side.clock.now)
    side.sent()
    side.join()
    assert side.sent() == [("algo-2", End(Verdict(Outcome.STOP)))]
    assert not side.leader.settled(side.clock.now)
    side.channel.post(PeerLeft("algo-2"))
    assert side.leader.settled(side.clock.now)


def test_a_host_that_joins_during_a_stop_is_told() -> None:
    side = Side()
    side.leader.report_stop(STOP, side.clock.now)
    side.leader.report_step(Step.FINISHED)
    side.sent()
    side.join()
    assert side.sent() == [("algo-2", StopScripts(STOP)), ("algo-2", Do(Command.DRAIN))]
    side.leader.report_step(Step.DRAINED)
    assert side.orders == [("stop", STOP), "drain"], "it is waited for"


def test_giving_up_tells_the_others_and_waits_for_none() -> None:
    side = Side(hosts=3).join("algo-2")
    side.leader.report_stop(STOP, side.clock.now)
    side.clock.now += 1.0
    side.leader.give_up()
    assert side.orders == [("stop", STOP), STOPPED]
    assert side.sent()[-1] == ("*", End(Verdict(Outcome.STOP)))
    assert not side.leader.settled(side.clock.now)
    assert side.leader.settled(side.clock.now + GIVE_UP_DEADLINE)


def test_a_lost_host_fails_the_job_and_is_named() -> None:
    for event in (PeerLost("algo-2", "silent for 15 s"), PeerLeft("algo-2")):
        side = Side().train()
        side.channel.post(event)
        side.wait(0.5)
        reason = getattr(event, "reason", "it left before the job had ended")
        assert side.cause() == lost("algo-2", reason)


def test_those_who_have_the_verdict_are_waited_for_within_a_deadline() -> None:
    side = Side().train()
    side.leader.report_failure(BOOM, side.clock.now)
    side.wait(0.5)
    assert side.cause() == BOOM
    assert not side.leader.settled(side.clock.now)
    assert side.leader.settled(side.clock.now + REPORT_DEADLINE)


def test_a_missing_host_is_named_when_the_time_to_join_is_up() -> None:
    side = Side(hosts=4).join("algo-2")
    side.wait(PROGRESS_PERIOD)
    text = "waiting for algo-3 and algo-4 to join, 45 s left"
    assert side.log.lines[-1] == text
    assert side.sent()[-1] == ("*", messages.Note(text))
    side.wait(41.0)
    assert sorted(side.lookups) == ["algo-3", "algo-4"]
    side.lookups["algo-3"].answer("10.0.0.3")
    side.lookups["algo-4"].obstacle = "the name algo-4 does not resolve (unknown)"
    side.wait(5.0)
    assert side.cause().kind is FailureKind.JOIN
    assert side.cause().reason == (
        "algo-3 and algo-4 did not join within 60 s (algo-3 resolves to 10.0.0.3 but never "
        "called; the name algo-4 does not resolve (unknown))"
    )


def test_who_is_still_busy_is_told() -> None:
    side = Side().join()
    side.hear("algo-2", messages.StepReport(Step.INSTALL, 1))
    side.wait(PROGRESS_PERIOD)
    assert side.log.lines[-1] == "waiting for algo-2 (installing requirements)"


def test_who_still_trains_is_told_and_a_stall_is_a_failure_where_that_is_set() -> None:
    side = Side(stall_timeout=100.0).train()
    side.leader.report_step(Step.FINISHED)
    side.hear("algo-2", messages.IdleReport(60.0))
    side.wait(PROGRESS_PERIOD)
    assert side.log.lines[-1] == ("algo-1 finished and waiting for algo-2 (no progress for 60 s)")
    side.hear("algo-2", messages.IdleReport(100.0))
    side.wait(1.0)
    assert side.cause().kind is FailureKind.STALLED
    assert "no progress for 100 s on algo-2, while algo-1 had finished" in side.cause().reason


def test_the_time_before_the_start_is_no_stall() -> None:
    side = Side(stall_timeout=100.0).join()
    side.hear("algo-2", messages.IdleReport(120.0))
    side.leader.report_idle(120.0)
    side.leader.report_ready("")
    side.hear("algo-2", messages.StepReport(Step.READY, 1))
    side.wait(1.0)
    assert side.kinds() == ["start"]


def differ(side: Side, seconds: float, difference: str, address: str = "10.0.0.2") -> None:
    """Let algo-2 call twice a second, with a key that leaves something out."""
    for _ in range(round(seconds * 2)):
        side.channel.post(PeerDiffers("algo-2", address, difference))
        side.wait(0.5)


@pytest.mark.parametrize(("secret", "difference"), [(False, HYPERPARAMETERS), (True, SECRET)])
def test_a_host_that_was_given_another_job_ends_it_soon_if_its_address_is_the_hosts(
    secret: bool, difference: str
) -> None:
    side = Side(secret=secret)
    differ(side, LEADER_GRACE, difference)
    assert side.orders == []
    side.lookups["algo-2"].answer("10.0.0.2")
    differ(side, 1.5, difference)
    assert side.cause().kind is FailureKind.JOIN
    assert side.cause().headline() == (
        "algo-2: entrypoint failed: does not agree with algo-1 on the job: they were given "
        f"different {difference}; give all hosts the same"
    )


def test_the_job_key_is_proof_enough_of_who_calls() -> None:
    side = Side(secret=True)
    differ(side, LEADER_GRACE + 1.5, HYPERPARAMETERS)
    assert side.cause().kind is FailureKind.JOIN
    assert not side.lookups


def test_a_stranger_that_calls_under_a_hosts_name_ends_nothing() -> None:
    """Whatever it knows of the job, and whoever it says it is: only the cause speaks of it."""
    side = Side()
    differ(side, 1.0, HYPERPARAMETERS, "10.9.9.9")
    side.lookups["algo-2"].answer("10.0.0.2")
    for number in range(2 * CALLERS_LIMIT):
        side.channel.post(PeerDiffers("algo-2", f"10.9.{number}.9", HYPERPARAMETERS))
    differ(side, 30.0, HYPERPARAMETERS, "10.9.9.9")
    assert side.orders == []
    side.wait(31.0)
    assert side.cause().reason == (
        "algo-2 did not join within 60 s (algo-2 called from 10.9.9.9, but was given different "
        "hyperparameters)"
    )


def test_a_stranger_without_any_key_is_told_in_the_cause() -> None:
    side = Side()
    reason = "calls itself algo-2 but does not hold this job's key"
    side.channel.post(Stranger("10.0.0.2", reason, "algo-2"))
    side.channel.post(Stranger("10.0.0.7", "does not speak this protocol"))
    assert f"turned 10.0.0.2 away: {reason}" in side.log.lines
    side.wait(61.0)
    assert f"(a caller at 10.0.0.2 {reason})" in side.cause().reason


def test_no_caller_ends_a_job_that_has_all_its_hosts() -> None:
    side = Side(secret=True).train()
    differ(side, 60.0, HYPERPARAMETERS)
    assert side.kinds() == ["start"]


def test_a_host_that_joins_after_all_was_no_disagreement() -> None:
    side = Side(secret=True)
    differ(side, LEADER_GRACE - 1, HYPERPARAMETERS)
    side.wait(DISAGREEMENT_FORGOTTEN + 1)
    differ(side, LEADER_GRACE - 1, HYPERPARAMETERS)
    assert side.orders == []
    side.join()
    differ(side, 60.0, HYPERPARAMETERS)
    assert side.orders == []


def test_a_wrong_message_is_logged_and_changes_nothing() -> None:
    side = Side().train()
    side.channel.post(PeerMessage("algo-2", {"type": "drained", "or": "not"}))
    side.hear("algo-2", End(Verdict(Outcome.SUCCESS)))
    assert side.kinds() == ["start"]
    assert len([line for line in side.log.lines if "sent a wrong message" in line]) == 2


# Further attempts.


def fail(side: Side, attempt: int = 1) -> None:
    side.hear("algo-2", messages.FailureReport(BOOM, attempt, 0.0))
    side.wait(0.5)


def test_another_attempt_has_the_next_number_a_checkpoint_and_another_port() -> None:
    side = Side(guard=FakeGuard()).train()
    side.leader.report_step(Step.CHECKPOINTING)
    side.sent()
    fail(side)
    assert side.orders[1:] == [Restart(2, BOOM)]
    assert side.sent() == [("*", Restart(2, BOOM))]
    side.leader.report_ready("checkpoint-000001-step-7.zip")
    side.hear("algo-2", messages.StepReport(Step.READY, 2))
    rendezvous = Rendezvous("10.0.0.1", 12345, "10.0.0.1", 1)
    start = Start(2, "checkpoint-000001-step-7.zip", rendezvous)
    assert side.orders[2:] == [start]
    assert side.sent() == [("*", replace(start, rendezvous=replace(rendezvous, own_address="")))]


def test_a_first_host_that_was_started_again_releases_the_port() -> None:
    guard = FakeGuard()
    side = Side(guard=guard, rejoin_timeout=60.0).join()
    side.hear("algo-2", messages.StepReport(Step.READY, 2))
    assert not guard.closed
    side.leader.report_ready("")
    assert side.kinds() == ["restart", "start"]
    assert guard.closed, "the scheduler may be given the same port"


def test_without_checkpoints_a_failure_is_the_end() -> None:
    side = Side().train()
    fail(side)
    assert side.cause() == BOOM


def test_who_is_waited_for_before_another_attempt_is_told() -> None:
    side = Side(rejoin_timeout=60.0).train()
    side.leader.report_step(Step.CHECKPOINTING)
    side.channel.post(PeerLost("algo-2", "its connection closed"))
    side.wait(0.5)
    side.leader.report_ready("")
    side.wait(PROGRESS_PERIOD + 1)
    assert "waiting for algo-2 to join, 45 s left" in side.log.lines
    side.join()
    assert side.sent()[-1] == ("algo-2", Restart(2, lost("algo-2", "its connection closed")))
    side.hear("algo-2", messages.StepReport(Step.READY, 2))
    assert side.kinds() == ["start", "restart", "start"]


def test_in_a_stop_all_leave_when_the_checkpoint_is_written() -> None:
    side = Side().train()
    side.leader.report_step(Step.CHECKPOINTING)
    side.leader.report_stop(STOP, side.clock.now)
    side.leader.report_step(Step.FINISHED)
    assert side.orders[-1] == "leave"
    assert side.sent()[-1] == ("*", Do(Command.LEAVE))
