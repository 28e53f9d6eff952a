"""The leader's coordinator, with fake connections: what it decides reaches whom it must."""

import selectors
import socket
from dataclasses import replace
from typing import Any, Iterator, List, Optional, Tuple

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster.coordinator import (
    GIVE_UP_DEADLINE,
    PROGRESS_PERIOD,
    REPORT_DEADLINE,
)
from sagemaker_mxnet_training.cluster.decision import VERDICT_DELAY
from sagemaker_mxnet_training.cluster.events import (
    DrainRoles,
    End,
    EndScripts,
    Failed,
    FirstStep,
    HostState,
    Idle,
    Note,
    RankFinished,
    Reported,
    Restart,
    Start,
    Stop,
    StopRequested,
    StopScripts,
    Verdict,
    lost,
)
from sagemaker_mxnet_training.cluster.leader import Leader
from tests.support.fakes import CoordinatorHarness, FakeMembers, FakeSupervisor, Idling, job
from tests.support.jobs import free_port

STOP = Stop("algo-1", 15)
STOPPED = End(Verdict(Outcome.STOP))
BOOM = Failure("algo-2", Role.WORKER, "boom", FailureKind.EXCEPTION, 1)


class Side(CoordinatorHarness):
    """The leader, algo-1, and everything around it."""

    def __init__(
        self,
        hosts: int = 2,
        supervisor: Optional[FakeSupervisor] = None,
        parameter_server: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(supervisor)
        self.members = FakeMembers()
        with selectors.DefaultSelector() as selector:
            self.leader = Leader(
                replace(
                    job("algo-1", hosts, **{"join_timeout": 60.0, **settings}),
                    parameter_server=parameter_server,
                ),
                self.log,
                self.supervisor.obey,
                selector,
                self.clock,
                self._connect,
            )
        self.coordinator = self.supervisor.coordinator = self.leader

    def _connect(
        self,
        job: Any,
        log: Any,
        selector: Any,
        joined: Any,
        lost: Any,
        report: Any,
        disagreement: Any,
        clock: Any,
    ) -> Any:
        self._joined, self.lose, self._report = joined, lost, report
        self.disagree = disagreement
        return self.members

    def join(self, *hosts: str) -> "Side":
        for host in hosts or ("algo-2",):
            self._joined(host, "10.0.0.2", "127.0.0.1")
        return self

    def train(self, hosts: int = 2) -> "Side":
        """Let everybody join and get ready."""
        self.leader.report_ready("")
        for number in range(2, hosts + 1):
            self.join(f"algo-{number}")
            self.state(HostState.READY, host=f"algo-{number}")
        return self

    def hear(self, *reports: Any, host: str = "algo-2") -> None:
        for report in reports:
            self._report(host, report)

    def state(self, *states: HostState, host: str = "algo-2", attempt: int = 1) -> None:
        self.hear(*(Reported(state, host, attempt) for state in states), host=host)

    def sent(self) -> List[Tuple[str, Any]]:
        """Return what was sent since the last time."""
        sent, self.members.sent = self.members.sent, []
        return sent


def test_a_job_in_which_all_goes_well() -> None:
    side = Side().train()
    assert side.orders == [Start(1)]
    side.state(HostState.STEPPED)
    side.leader.report_state(HostState.FINISHED)
    assert "algo-1 finished; still training: algo-2" in side.log.lines
    side.state(HostState.FINISHED, HostState.DRAINED)
    side.leader.report_state(HostState.DRAINED)
    end = End(Verdict(Outcome.SUCCESS))
    assert side.orders[1:] == [FirstStep(), DrainRoles(), end]
    assert side.sent() == [("*", order) for order in side.orders]
    assert not side.leader.delivered(side.clock.now), "algo-2 has not left yet"
    side.lose("algo-2", "it left before the job ended", False)
    assert side.leader.delivered(side.clock.now)
    side.leader.close()
    assert side.members.closed


def test_a_host_alone_needs_no_network() -> None:
    side = Side(hosts=1, supervisor=Idling())
    side.leader.report_ready("")
    side.leader.report_state(HostState.FINISHED)
    assert side.orders == [Start(1), DrainRoles(), End(Verdict(Outcome.SUCCESS))]
    assert side.leader.delivered(side.clock.now)


def test_orders_that_lead_to_more_are_carried_out_in_turn() -> None:
    """A supervisor without processes reports during the call."""
    side = Side(supervisor=Idling()).join()
    side.leader.report_stop(STOP, side.clock.now)
    assert side.orders == [StopScripts(STOP)]
    side.state(HostState.FINISHED, HostState.DRAINED)
    assert side.orders == [StopScripts(STOP), DrainRoles(), STOPPED]
    assert [message for _, message in side.sent()] == [
        StopScripts(STOP),
        DrainRoles(),
        End(Verdict(Outcome.STOP)),
    ]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_kvstore_meets_where_the_others_reach_this_host() -> None:
    side = Side(parameter_server=True, ps_port=0, servers_per_host=2).train()
    (start,) = side.orders
    meeting = start.rendezvous
    assert (meeting.address, meeting.own_address) == ("127.0.0.1", "127.0.0.1")
    assert (meeting.port > 0, meeting.servers_per_host) == (True, 2)


def test_port_that_was_asked_for_and_is_taken_is_a_failure(taken: int) -> None:
    """The others hear of it, and it is known before anybody fetches anything."""
    side = Side(parameter_server=True, ps_port=taken, explicit_ps_port=True).join()
    side.wait(VERDICT_DELAY + 0.5)
    assert side.cause().role is Role.SCHEDULER
    assert side.cause().kind is FailureKind.NETWORK
    assert f"port {taken} on 0.0.0.0 is taken by process " in side.cause().reason
    assert side.sent()[-1] == ("*", End(side.end()))


def test_port_that_is_taken_before_the_start_is_a_failure() -> None:
    port = free_port()
    side = Side(parameter_server=True, ps_port=port, explicit_ps_port=True)
    with socket.create_server(("127.0.0.1", port)):
        side.train()
        side.wait(VERDICT_DELAY + 0.5)
    assert f"port {port} on 127.0.0.1 is taken by process " in side.cause().reason


def test_port_that_nobody_asked_for_may_be_another(taken: int) -> None:
    side = Side(parameter_server=True, ps_port=taken).train()
    (start,) = side.orders
    assert start.rendezvous.port != taken
    assert f"port {taken} is taken by process" in side.log.lines[-1]


def test_the_age_of_what_others_report_decides_what_came_first() -> None:
    side = Side().train()
    late = Failure("algo-1", Role.WORKER, "lost its peer", FailureKind.EXCEPTION)
    side.leader.report_failure(late, side.clock.now)
    side.clock.now += 0.1
    side.hear(Failed(BOOM, -0.2, 1))
    side.wait(0.5)
    assert side.cause() == BOOM


def test_a_stop_on_any_host_stops_all() -> None:
    side = Side(hosts=3).train(3)
    side.sent()
    side.hear(StopRequested(Stop("algo-3", 2), 0.0), host="algo-3")
    stop = Stop("algo-3", 2)
    assert side.orders[1:] == [StopScripts(stop)]
    assert side.sent() == [("*", StopScripts(stop))]


def test_a_stop_does_not_wait_for_a_host_that_leaves() -> None:
    side = Side(supervisor=Idling()).train()
    side.leader.report_stop(STOP, side.clock.now)
    assert side.orders[1:] == [StopScripts(STOP)]
    side.lose("algo-2", "silent for 15 s", False)
    assert side.orders[1:] == [StopScripts(STOP), DrainRoles(), STOPPED]
    assert side.leader.delivered(side.clock.now)


def test_stop_does_not_wait_for_hosts_that_never_joined() -> None:
    side = Side(supervisor=Idling())
    side.leader.report_stop(STOP, side.clock.now)
    assert side.orders == [StopScripts(STOP), DrainRoles(), STOPPED]
    assert not side.leader.delivered(side.clock.now)
    side.sent()
    side.join()
    assert side.sent() == [("algo-2", End(Verdict(Outcome.STOP)))]
    assert not side.leader.delivered(side.clock.now)
    side.lose("algo-2", "it left before the job ended", False)
    assert side.leader.delivered(side.clock.now)


def test_a_host_that_joins_during_a_stop_is_told() -> None:
    side = Side()
    side.leader.report_stop(STOP, side.clock.now)
    side.leader.report_state(HostState.FINISHED)
    side.sent()
    side.join()
    assert side.sent() == [("algo-2", StopScripts(STOP)), ("algo-2", DrainRoles())]
    side.leader.report_state(HostState.DRAINED)
    assert side.orders == [StopScripts(STOP), DrainRoles()], "it is waited for"


def test_giving_up_tells_the_others_and_waits_for_none() -> None:
    side = Side(hosts=3).join("algo-2")
    side.leader.report_stop(STOP, side.clock.now)
    side.clock.now += 1.0
    side.leader.give_up()
    assert side.orders == [StopScripts(STOP), STOPPED]
    assert side.sent()[-1] == ("*", End(Verdict(Outcome.STOP)))
    assert not side.leader.delivered(side.clock.now)
    assert side.leader.delivered(side.clock.now + GIVE_UP_DEADLINE)


def test_a_lost_host_fails_the_job_and_is_named() -> None:
    side = Side().train()
    side.lose("algo-2", "silent for 15 s", False)
    side.wait(0.5)
    assert side.cause() == lost("algo-2", "silent for 15 s")


def test_leader_that_was_suspended_names_itself() -> None:
    side = Side(hosts=3).train(3)
    side.lose("algo-2", "silent for 15 s", True)
    side.lose("algo-3", "its connection closed unexpectedly", False)
    side.wait(0.5)
    assert side.cause() == lost("algo-1", "silent for 15 s")


def test_followers_have_a_deadline_to_read_the_verdict() -> None:
    side = Side().train()
    side.leader.report_failure(BOOM, side.clock.now)
    side.wait(0.5)
    assert side.cause() == BOOM
    assert not side.leader.delivered(side.clock.now)
    assert side.leader.delivered(side.clock.now + REPORT_DEADLINE)


def test_missing_host_is_named_after_join_timeout() -> None:
    side = Side(hosts=4).join("algo-2")
    side.wait(PROGRESS_PERIOD)
    text = "waiting for algo-3 and algo-4 to join, 45 s left"
    assert side.log.lines[-1] == text
    assert side.sent()[-1] == ("*", Note(text))
    side.wait(41.0)
    assert side.members.looked_up == ["algo-3", "algo-4"]
    side.members.obstacles["algo-4"] = "the name algo-4 does not resolve (unknown)"
    side.wait(5.0)
    assert side.cause().kind is FailureKind.JOIN
    assert side.cause().reason == (
        "algo-3 and algo-4 did not join within 60 s (algo-3 never connected; the name algo-4 "
        "does not resolve (unknown)); algo-1 listens on 0.0.0.0:8001"
    )


def test_host_reports_of_itself_only() -> None:
    side = Side(hosts=3).train(3)
    side.hear(
        Reported(HostState.FINISHED, "algo-3"), Idle("algo-9", 5.0), RankFinished("algo-9", 1)
    )
    assert "algo-2 finished; still training: algo-1 and algo-3" in side.log.lines
    assert side.leader._cluster.ranks_finished == (RankFinished("algo-2", 1),)


def test_who_is_still_busy_is_told() -> None:
    side = Side().join()
    side.state(HostState.INSTALL)
    side.wait(PROGRESS_PERIOD)
    assert side.log.lines[-1] == "waiting for algo-2 (installing requirements)"


def test_hosts_that_still_train_are_logged_and_may_stall() -> None:
    side = Side(stall_timeout=100.0).train()
    side.leader.report_state(HostState.FINISHED)
    side.hear(Idle("algo-2", 60.0))
    side.wait(PROGRESS_PERIOD)
    assert side.log.lines[-1] == (
        "algo-1 finished and waiting for algo-2 (no progress for 60 s): with dist_sync all hosts "
        "must push equally often; use the same number of batches on all hosts; "
        "sagemaker_mxnet_stall_timeout would make this a failure"
    )
    side.hear(Idle("algo-2", 100.0))
    side.wait(1.0)
    assert side.cause().kind is FailureKind.UNEVEN
    assert "no progress for 100 s on algo-2, after algo-1 had finished" in side.cause().reason


def test_the_time_before_the_start_is_no_stall() -> None:
    side = Side(stall_timeout=100.0).join()
    side.hear(Idle("algo-2", 120.0))
    side.leader.report_idle(120.0)
    side.leader.report_ready("")
    side.state(HostState.READY)
    side.wait(1.0)
    assert side.orders == [Start(1)]


def test_host_that_was_given_another_job_ends_it() -> None:
    side = Side()
    failure = Failure("algo-2", Role.ENTRYPOINT, "does not agree", FailureKind.JOIN)
    side.disagree(failure)
    side.wait(0.5)
    assert side.cause() == failure
    assert side.leader.delivered(side.clock.now), "it was refused, and knows"


# Further attempts.


def fail(side: Side, attempt: int = 1) -> None:
    side.hear(Failed(BOOM, -0.0, attempt))
    side.wait(0.5)


def test_another_attempt_has_another_number_and_port() -> None:
    side = Side(parameter_server=True, ps_port=0).train()
    side.leader.report_state(HostState.CHECKPOINTING)
    side.sent()
    fail(side)
    assert side.orders[1:] == [Restart(2, BOOM)]
    assert side.sent() == [("*", Restart(2, BOOM))]
    side.leader.report_ready("checkpoint-000001-step-7.zip")
    side.state(HostState.READY, attempt=2)
    first, _, second = side.orders
    assert (second.attempt, second.resume) == (2, "checkpoint-000001-step-7.zip")
    assert second.rendezvous.port != first.rendezvous.port
    assert side.sent() == [("*", second)]


def test_without_checkpoints_a_failure_is_the_end() -> None:
    side = Side().train()
    fail(side)
    assert side.cause() == BOOM


def test_in_a_stop_all_leave_when_the_checkpoint_is_written() -> None:
    side = Side().train()
    side.leader.report_state(HostState.CHECKPOINTING)
    side.leader.report_stop(STOP, side.clock.now)
    side.leader.report_state(HostState.FINISHED)
    assert side.orders[-1] == EndScripts()
    assert side.sent()[-1] == ("*", EndScripts())
