"""Every ending, without a process: the decision, its orders, and what must hold of both."""

from dataclasses import replace
from random import Random
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster import decision
from sagemaker_mxnet_training.cluster.decision import (
    PEER_VERDICT_DELAY,
    SHORT_VERDICT_DELAY,
    VERDICT_DELAY,
    Cluster,
    Phase,
    advance,
)
from sagemaker_mxnet_training.cluster.events import (
    DrainRoles,
    End,
    EndScripts,
    Event,
    Failed,
    FirstStep,
    HostState,
    LocalEvent,
    Lost,
    Order,
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
from sagemaker_mxnet_training.cluster.restarts import FailedAttempt, refusal

DRAIN, LEAVE, FIRST_STEP = DrainRoles(), EndScripts(), FirstStep()
NAMES = ("algo-1", "algo-2", "algo-3", "algo-4")
STOP = Stop("algo-1", 15)


def did(event: Event, state: HostState) -> bool:
    return isinstance(event, Reported) and event.state is state


def name_of(action: Any) -> str:
    return type(action).__name__.lower()


class Job:
    """A cluster that is fed, with all orders so far."""

    def __init__(
        self,
        hosts: int = 2,
        joined: bool = True,
        max_restarts: Optional[int] = 0,
    ) -> None:
        self.names = NAMES[:hosts]
        self.cluster = Cluster.of(self.names, "algo-1", max_restarts)
        self.orders: List[Order] = []
        for name in self.names[1:] if joined else ():
            self.feed(0.0, Reported(HostState.JOINED, name))

    def feed(self, now: float, *events: Event) -> List[Order]:
        """Feed events, all seen at one time; return the orders that follow."""
        new: List[Order] = []
        for event in events:
            self.cluster, orders = advance(self.cluster, event, now)
            new.extend(orders)
        self.orders.extend(new)
        return new

    def all(self, now: float, state: HostState, attempt: int = 1) -> List[Order]:
        """Let every host report a step."""
        return self.feed(now, *(Reported(state, name, attempt) for name in self.names))


def failure(host: str, reason: str = "boom") -> Failure:
    return Failure(host, Role.WORKER, reason, FailureKind.EXCEPTION, 1)


def test_a_job_in_which_all_goes_well_passes_through_all_phases() -> None:
    job = Job()
    assert job.feed(1.0, Reported(HostState.READY, "algo-1")) == []
    assert job.cluster.phase is Phase.GATHERING
    assert job.feed(1.0, Reported(HostState.READY, "algo-2")) == [Order(Start(1))]
    assert job.cluster.phase is Phase.TRAINING
    assert job.feed(
        2.0, Reported(HostState.STEPPED, "algo-1"), Reported(HostState.STEPPED, "algo-2")
    ) == [Order(FIRST_STEP)]
    assert job.all(3.0, HostState.FINISHED) == [Order(DRAIN)]
    assert job.cluster.phase is Phase.DRAINING
    assert job.all(4.0, HostState.DRAINED) == [Order(End(Verdict(Outcome.SUCCESS)))]
    assert job.cluster.phase is Phase.ENDED


def test_verdict_knows_whether_a_host_has_a_model() -> None:
    job = Job(hosts=3)
    job.all(1.0, HostState.READY)
    job.all(2.0, HostState.FINISHED)
    job.feed(3.0, Reported(HostState.SAVED, "algo-2"))
    assert job.all(3.0, HostState.DRAINED) == [Order(End(Verdict(Outcome.SUCCESS, saved=True)))]


def test_the_verdict_waits_for_an_earlier_failure_to_arrive() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    assert job.feed(10.02, Failed(failure("algo-1", "lost its peer"), 10.02)) == []
    assert job.feed(10.05, Failed(failure("algo-2"), 10.0)) == []
    assert job.cluster.due == 10.02 + VERDICT_DELAY
    assert job.feed(10.1, LocalEvent.TICK) == []
    assert job.feed(10.4, LocalEvent.TICK) == [
        Order(End(Verdict(Outcome.FAILURE, failure("algo-2"))))
    ]


def killed(host: str) -> Failure:
    return Failure(host, Role.SERVER, "killed by SIGKILL", FailureKind.SIGNAL, 137)


def test_killed_process_is_a_cause_without_a_long_wait() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    assert job.feed(10.0, Failed(killed("algo-2"), 10.0)) == []
    assert job.cluster.due == 10.0 + SHORT_VERDICT_DELAY
    assert job.feed(10.02, Failed(failure("algo-1", "earlier"), 9.99)) == []
    assert job.feed(10.06, LocalEvent.TICK) == [
        Order(End(Verdict(Outcome.FAILURE, failure("algo-1", "earlier"))))
    ]


def test_what_follows_from_a_killed_process_may_be_heard_first() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    assert job.feed(10.0, Failed(failure("algo-1", "lost its peer"), 10.0)) == []
    assert job.feed(10.1, Failed(killed("algo-2"), 9.9)) == []
    assert job.cluster.due == 10.1 + SHORT_VERDICT_DELAY
    assert job.feed(10.16, LocalEvent.TICK) == [
        Order(End(Verdict(Outcome.FAILURE, killed("algo-2"))))
    ]


def peer(host: str) -> Failure:
    text = "MXNetError: Horovod has been shut down"
    return Failure(host, Role.WORKER, text, FailureKind.PEER, 1, rank=0)


@pytest.mark.parametrize("cause", [failure("algo-2"), killed("algo-2")])
def test_lost_peer_yields_to_any_other_failure(cause: Failure) -> None:
    """Also to one that is seen later: a killed worker may be reaped after the others fail."""
    job = Job()
    job.all(1.0, HostState.READY)
    assert job.feed(10.0, Failed(peer("algo-1"), 10.0)) == []
    assert job.cluster.due == 10.0 + PEER_VERDICT_DELAY
    assert job.feed(10.6, Failed(cause, 10.5), Failed(peer("algo-2"), 9.0)) == []
    assert job.feed(11.0, LocalEvent.TICK) == [Order(End(Verdict(Outcome.FAILURE, cause)))]


def test_lost_peer_yields_to_a_lost_host() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.feed(10.0, Failed(peer("algo-1"), 10.0), Lost("algo-2", "its connection closed", 10.1))
    verdict = Verdict(Outcome.FAILURE, lost("algo-2", "its connection closed"))
    assert job.feed(11.0, LocalEvent.TICK) == [Order(End(verdict))]


def test_lost_peer_is_the_cause_where_nothing_else_failed() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.feed(10.0, Failed(peer("algo-1"), 10.0))
    assert job.feed(10.0 + VERDICT_DELAY, LocalEvent.TICK) == []
    verdict = Verdict(Outcome.FAILURE, peer("algo-1"))
    assert job.feed(10.0 + PEER_VERDICT_DELAY, LocalEvent.TICK) == [Order(End(verdict))]


@pytest.mark.parametrize("order", [1, -1])
def test_rank_that_left_early_is_the_cause(order: int) -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    events: List[Event] = [RankFinished("algo-2", 3), Failed(peer("algo-1"), 10.0)]
    assert job.feed(10.0, *events[::order]) == []
    assert job.cluster.due == 10.0 + VERDICT_DELAY
    (ending,) = job.feed(10.5, LocalEvent.TICK)
    assert isinstance(ending.action, End)
    cause = ending.action.verdict.failure
    assert cause is not None
    assert cause.headline().startswith("algo-2: rank 3 failed: left early: ")


def test_ranks_that_finish_are_no_failure() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    assert job.feed(10.0, RankFinished("algo-2", 3), RankFinished("algo-2", 2)) == []
    assert job.all(12.0, HostState.FINISHED) == [Order(DRAIN)]


def test_lost_peer_in_a_stop_is_no_failure() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.feed(10.0, StopRequested(STOP, 10.0), Failed(peer("algo-1"), 10.2))
    assert job.cluster.stopping


def test_a_failure_after_a_stop_is_no_failure() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.feed(5.0, StopRequested(STOP, 5.0))
    assert job.feed(6.0, Failed(failure("algo-2"), 6.0)) == []
    assert job.feed(20.0, *(Reported(HostState.FINISHED, name) for name in NAMES[:2])) == [
        Order(DRAIN)
    ]
    assert job.all(20.0, HostState.DRAINED) == [Order(End(Verdict(Outcome.STOP)))]


def test_failure_before_a_stop_is_the_cause_even_if_reported_later() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.feed(5.0, StopRequested(STOP, 5.0))
    job.feed(5.1, Failed(failure("algo-2"), 4.9))
    assert job.feed(6.0, LocalEvent.TICK) == [
        Order(End(Verdict(Outcome.FAILURE, failure("algo-2"))))
    ]


def test_a_stop_before_training_waits_for_members_only() -> None:
    job = Job(hosts=3, joined=False)
    job.feed(0.0, Reported(HostState.JOINED, "algo-2"), Reported(HostState.READY, "algo-1"))
    assert job.feed(1.0, StopRequested(STOP, 1.0)) == [Order(StopScripts(STOP))]
    assert job.cluster.phase is Phase.STOPPING
    assert job.feed(2.0, Reported(HostState.FINISHED, "algo-1")) == []
    assert job.feed(2.0, Reported(HostState.FINISHED, "algo-2")) == [Order(DRAIN)]
    assert job.feed(
        2.0, Reported(HostState.DRAINED, "algo-1"), Reported(HostState.DRAINED, "algo-2")
    ) == [Order(End(Verdict(Outcome.STOP)))]


def test_a_host_that_joins_during_a_stop_is_told_and_waited_for() -> None:
    job = Job(joined=False)
    job.feed(1.0, StopRequested(STOP, 1.0), Reported(HostState.FINISHED, "algo-1"))
    assert job.cluster.phase is Phase.DRAINING
    assert job.feed(2.0, Reported(HostState.JOINED, "algo-2")) == [
        Order(StopScripts(STOP), "algo-2"),
        Order(DRAIN, "algo-2"),
    ]
    assert job.feed(3.0, Reported(HostState.DRAINED, "algo-1")) == []
    assert job.feed(3.0, Reported(HostState.DRAINED, "algo-2")) == [
        Order(End(Verdict(Outcome.STOP)))
    ]


def test_a_host_that_joins_after_the_end_is_told_the_verdict() -> None:
    job = Job(joined=False)
    job.feed(1.0, Failed(failure("algo-1"), 1.0))
    job.feed(2.0, LocalEvent.TICK)
    verdict = Verdict(Outcome.FAILURE, failure("algo-1"))
    assert job.feed(3.0, Reported(HostState.JOINED, "algo-2")) == [Order(End(verdict), "algo-2")]
    assert job.cluster.joined == {"algo-1", "algo-2"}
    assert job.feed(4.0, Lost("algo-2", "left", 4.0)) == []
    assert job.cluster.joined == {"algo-1"}


def test_stop_does_not_wait_for_a_lost_host() -> None:
    for reached in (
        [],
        [Reported(HostState.FINISHED, "algo-2")],
        [Reported(HostState.FINISHED, "algo-2"), Reported(HostState.DRAINED, "algo-2")],
    ):
        job = Job()
        job.all(1.0, HostState.READY)
        job.feed(2.0, StopRequested(STOP, 2.0), *reached)
        job.feed(3.0, Lost("algo-2", "gone", 3.0))
        job.feed(4.0, Reported(HostState.FINISHED, "algo-1"), Reported(HostState.DRAINED, "algo-1"))
        assert job.cluster.verdict == Verdict(Outcome.STOP)
        assert [order.action for order in job.orders] == [
            Start(1),
            StopScripts(STOP),
            DRAIN,
            End(Verdict(Outcome.STOP)),
        ]


def test_a_lost_host_is_the_failure_of_a_job_that_does_not_stop() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.feed(2.0, Lost("algo-2", "silent for 15 s", 2.0))
    verdict = Verdict(Outcome.FAILURE, lost("algo-2", "silent for 15 s"))
    assert job.feed(3.0, LocalEvent.TICK) == [Order(End(verdict))]
    assert verdict.failure is not None
    assert verdict.failure.kind is FailureKind.LOST


def test_giving_up_ends_a_stop_at_once() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.feed(2.0, StopRequested(STOP, 2.0))
    assert job.feed(3.0, LocalEvent.GAVE_UP) == [Order(End(Verdict(Outcome.STOP)))]


def test_giving_up_does_not_hide_a_failure_before_the_stop() -> None:
    job = Job()
    job.feed(2.0, Failed(failure("algo-2"), 1.9))
    job.feed(2.0, StopRequested(STOP, 2.0))
    assert job.feed(2.1, LocalEvent.GAVE_UP) == [
        Order(End(Verdict(Outcome.FAILURE, failure("algo-2"))))
    ]


def test_a_stop_while_draining_is_ordered_and_counts() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    job.all(2.0, HostState.FINISHED)
    assert job.feed(3.0, StopRequested(STOP, 3.0)) == [Order(StopScripts(STOP))]
    assert job.all(4.0, HostState.DRAINED) == [Order(End(Verdict(Outcome.STOP)))]


def test_a_stranger_to_the_job_changes_nothing() -> None:
    job = Job()
    job.all(1.0, HostState.READY)
    before = job.cluster
    eve = "eve"
    job.feed(
        1.0,
        Reported(HostState.JOINED, eve),
        Reported(HostState.FINISHED, eve),
        Reported(HostState.DRAINED, eve),
        Reported(HostState.READY, eve),
        Lost(eve, "", 1.0),
    )
    assert job.cluster == before


KINDS: Sequence[object] = (
    HostState.JOINED, HostState.JOINED, Lost, HostState.READY, HostState.READY,
    HostState.STEPPED, HostState.FINISHED, HostState.DRAINED, Failed, StopRequested,
    LocalEvent.GAVE_UP, LocalEvent.TICK,
)  # fmt: skip
"""Kinds of events to draw from; without hosts that join and get ready little happens."""

History = Tuple[Tuple[str, ...], List[Tuple[float, Event]]]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Any events of up to four hosts, in any order, each heard some time after it happened.

    Only members say anything, and none comes back, as the control channel has it.
    """
    names = NAMES[: draw(st.integers(1, 4))]
    members, absent = {"algo-1"}, set(names[1:])
    now = 0.0
    heard: List[Tuple[float, Event]] = []
    for index in range(draw(st.integers(0, 30))):
        now += draw(st.floats(0, 1))
        happened = now - draw(st.floats(0, 2))
        name = draw(st.sampled_from(sorted(members)))
        kind = draw(st.sampled_from(KINDS))
        if kind is HostState.JOINED and absent:
            name = draw(st.sampled_from(sorted(absent)))
            absent.discard(name)
            members.add(name)
            heard.append((now, Reported(HostState.JOINED, name)))
        elif kind is Lost and len(members) > 1:
            name = draw(st.sampled_from(sorted(members - {"algo-1"})))
            members.discard(name)
            heard.append((now, Lost(name, f"gone {index}", now)))
        elif kind is Failed:
            what = draw(st.sampled_from((failure(name, f"fault {index}"), killed(name))))
            heard.append((now, Failed(what, happened)))
        elif kind is StopRequested:
            heard.append((now, StopRequested(Stop(name, 15), happened)))
        elif isinstance(kind, HostState) and kind is not HostState.JOINED:
            heard.append((now, Reported(kind, name)))
        elif isinstance(kind, LocalEvent):
            heard.append((now, kind))
    return names, heard


def completed(history: History) -> List[Tuple[float, Event]]:
    """Append what sooner or later happens: all that live get on, all that do not are noticed."""
    names, heard = history
    end = (heard[-1][0] if heard else 0.0) + VERDICT_DELAY
    came = {"algo-1"} | {event.host for _, event in heard if did(event, HostState.JOINED)}
    gone = {event.host for _, event in heard if isinstance(event, Lost)}
    tail: List[Event] = [
        LocalEvent.TICK,
        *(Reported(HostState.JOINED, name) for name in names if name not in came),
    ]
    for step in (HostState.READY, HostState.FINISHED, HostState.DRAINED):
        tail += [Reported(step, name) for name in names if name not in gone]
    return heard + [(end, event) for event in tail] + [(end + VERDICT_DELAY, LocalEvent.TICK)]


def played(
    names: Sequence[str], heard: Sequence[Tuple[float, Event]]
) -> List[Tuple[Cluster, Event, Cluster, Tuple[Order, ...]]]:
    """Return each step: the state before, the event, the state after and the orders."""
    cluster = Cluster.of(names, "algo-1")
    steps = []
    for now, event in heard:
        after, orders = advance(cluster, event, now)
        steps.append((cluster, event, after, orders))
        cluster = after
    return steps


def expected(seen: Sequence[Event]) -> Tuple[Outcome, Optional[Failure]]:
    """Return how a job must end after these messages: a second statement of the rule."""
    stops = [event.time for event in seen if isinstance(event, StopRequested)]
    failures = [
        (event.time, event.failure if isinstance(event, Failed) else lost(event.host, event.reason))
        for event in seen
        if isinstance(event, (Failed, Lost))
    ]
    # Of two at the same time, the one that was heard first.
    first = min(failures, key=lambda pair: pair[0], default=None)
    if first is not None and first[0] < min(stops, default=float("inf")):
        return Outcome.FAILURE, first[1]
    if stops or seen[-1] is LocalEvent.GAVE_UP:
        return Outcome.STOP, None
    return Outcome.SUCCESS, None


@settings(max_examples=400, deadline=None)
@given(histories())
def test_every_history_ends_once_and_names_the_earliest_failure(history: History) -> None:
    steps = played(history[0], completed(history))
    before_end = [event for before, event, _, _ in steps if before.phase is not Phase.ENDED]
    last = steps[-1][2]
    assert last.phase is Phase.ENDED
    ends = [order for *_, orders in steps for order in orders if isinstance(order.action, End)]
    assert [order.to for order in ends].count(None) == 1, "it ends, and once"
    assert {order.action for order in ends} == {End(last.verdict)}, "the same for all"
    assert last.verdict == Verdict(*expected(before_end))


@settings(max_examples=400, deadline=None)
@given(histories())
def test_no_host_is_given_an_order_twice_or_out_of_turn(history: History) -> None:
    turn = {"start": 0, "drain": 1, "end": 2}
    given_to: Dict[str, List[str]] = {name: [] for name in history[0]}
    for _, _, after, orders in played(history[0], completed(history)):
        for order in orders:
            hosts: FrozenSet[str] = after.joined if order.to is None else frozenset((order.to,))
            assert hosts <= after.joined, "only members can be given orders"
            for host in hosts:
                given_to[host].append(name_of(order.action))
    for names in given_to.values():
        assert len(names) == len(set(names)), "each at most once"
        assert "end" not in names[:-1], "nothing after the end"
        turns = [turn[name] for name in names if name in turn]
        assert turns == sorted(turns)
        if "stopscripts" in names:
            assert "start" not in names[names.index("stopscripts") :], "no start after a stop"


@settings(max_examples=250, deadline=None)
@given(histories())
def test_success_needs_every_host_and_no_fault(history: History) -> None:
    seen: List[Event] = []
    for _, event, after, _ in played(*history):
        seen.append(event)
        if after.verdict == Verdict(Outcome.SUCCESS):
            names: Set[str] = set(history[0])
            assert {e.host for e in seen if did(e, HostState.DRAINED)} == names
            assert {e.host for e in seen if did(e, HostState.FINISHED)} == names
            assert not any(isinstance(e, (Failed, Lost, StopRequested)) for e in seen)
            assert LocalEvent.GAVE_UP not in seen
            break


@settings(max_examples=250, deadline=None)
@given(histories())
def test_a_phase_never_comes_back_and_nothing_changes_a_verdict(history: History) -> None:
    order = list(Phase)
    for before, event, after, orders in played(*history):
        assert order.index(after.phase) >= order.index(before.phase)
        if before.phase is Phase.ENDED:
            assert after.verdict == before.verdict
            assert not orders or did(event, HostState.JOINED)


@settings(max_examples=250, deadline=None)
@given(histories())
def test_a_tick_changes_something_when_it_is_due_and_only_then(history: History) -> None:
    """Else the loop would spin, or sleep through a verdict."""
    now = 0.0
    cluster = Cluster.of(history[0], "algo-1")
    for seen, event in history[1]:
        now = seen
        cluster, _ = advance(cluster, event, now)
    due = cluster.due
    if due is None or due > now:
        assert advance(cluster, LocalEvent.TICK, now) == (cluster, ())
    if due is not None:
        after, orders = advance(cluster, LocalEvent.TICK, max(now, due))
        assert orders
        assert after.due is None


def test_verdict_delay_is_well_below_five_seconds() -> None:
    assert decision.VERDICT_DELAY < 1.0


# Further attempts.

RESTARTS = None  # as where the setting is not given


def training(checkpoints: bool = True, max_restarts: Optional[int] = RESTARTS) -> Job:
    """Return a job of two hosts whose roles run."""
    job = Job(max_restarts=max_restarts)
    job.all(1.0, HostState.READY)
    if checkpoints:
        job.feed(1.0, Reported(HostState.CHECKPOINTING, "algo-1"))
    return job


def fail(job: Job, now: float, reason: str = "boom", attempt: int = 1) -> List[Order]:
    """Let something fail on algo-2, and the time pass in which an earlier failure is heard."""
    job.feed(now, Failed(failure("algo-2", reason), now, attempt))
    return job.feed(now + VERDICT_DELAY, LocalEvent.TICK)


def test_a_job_with_checkpoints_begins_anew_after_a_failure() -> None:
    job = training()
    assert fail(job, 5.0) == [Order(Restart(2, failure("algo-2")))]
    assert job.cluster.phase is Phase.GATHERING
    assert (
        job.feed(6.0, Reported(HostState.READY, "algo-1"), Reported(HostState.FINISHED, "algo-2"))
        == []
    )
    assert job.all(6.0, HostState.READY, attempt=2) == [Order(Start(2))]
    assert job.all(7.0, HostState.STEPPED, attempt=2) == [Order(FIRST_STEP)]
    assert job.all(8.0, HostState.FINISHED, attempt=2) == [Order(DRAIN)]
    cause = failure("algo-2").headline()
    end = End(Verdict(Outcome.SUCCESS, None, restarts=1, first_cause=cause))
    assert job.all(9.0, HostState.DRAINED, attempt=2) == [Order(end)]


def test_a_job_without_checkpoints_ends_at_the_first_failure() -> None:
    verdict = Verdict(Outcome.FAILURE, failure("algo-2"))
    assert fail(training(checkpoints=False), 5.0) == [Order(End(verdict))]


def test_who_asks_for_restarts_gets_them_without_checkpoints() -> None:
    job = training(checkpoints=False, max_restarts=1)
    assert name_of(fail(job, 5.0)[0].action) == "restart"
    job.all(6.0, HostState.READY, attempt=2)
    (order,) = fail(job, 7.0, "another", attempt=2)
    cause = failure("algo-2").headline()
    assert order == Order(End(Verdict(Outcome.FAILURE, failure("algo-2", "another"), 1, cause)))


def test_same_failure_without_a_new_checkpoint_ends_the_job() -> None:
    job = training()
    fail(job, 5.0)
    job.all(6.0, HostState.READY, attempt=2)
    assert name_of(fail(job, 7.0, attempt=2)[0].action) == "end"


def test_failures_that_take_turns_are_repeated_ones() -> None:
    one, other = ended(1, FailureKind.EXCEPTION), ended(2, FailureKind.EXCEPTION, "y")
    assert not refusal(RESTARTS, True, other, [one])
    third = replace(one, number=3)
    assert "no checkpoint was written since" in refusal(RESTARTS, True, third, [one, other])
    assert not refusal(RESTARTS, True, third, [one, replace(other, committed=True)])


def test_the_same_failure_after_a_checkpoint_is_not_the_end() -> None:
    job = training()
    fail(job, 5.0)
    job.all(6.0, HostState.READY, attempt=2)
    job.feed(6.5, Reported(HostState.CHECKPOINTED, "algo-1", 2))
    assert name_of(fail(job, 7.0, attempt=2)[0].action) == "restart"


def test_late_messages_of_an_earlier_attempt_are_ignored() -> None:
    job = training()
    fail(job, 5.0)
    before = job.cluster
    late = [Reported(step, "algo-2", 1) for step in HostState if step is not HostState.JOINED]
    assert job.feed(6.0, *late, Failed(failure("algo-1", "late"), 4.0, 1)) == []
    assert job.cluster == before


def test_a_stop_during_a_restart_stops_the_job() -> None:
    job = training()
    fail(job, 5.0)
    assert job.feed(6.0, StopRequested(STOP, 6.0)) == [Order(StopScripts(STOP))]
    assert job.all(6.0, HostState.FINISHED, attempt=2) == [Order(LEAVE), Order(DRAIN)]
    (order,) = job.all(6.0, HostState.DRAINED, attempt=2)
    assert order.action.verdict.outcome is Outcome.STOP  # type: ignore[union-attr]


def test_a_failure_that_a_stop_follows_at_once_ends_the_job() -> None:
    job = training()
    job.feed(5.0, Failed(failure("algo-2"), 5.0), StopRequested(STOP, 5.1))
    (order,) = job.feed(6.0, LocalEvent.TICK)
    assert order == Order(End(Verdict(Outcome.FAILURE, failure("algo-2"))))


def test_stop_ends_all_after_the_first_host_wrote_its_checkpoint() -> None:
    job = training()
    job.feed(5.0, StopRequested(STOP, 5.0))
    assert job.feed(6.0, Reported(HostState.CHECKPOINTED, "algo-1")) == []
    assert job.feed(6.0, Reported(HostState.FINISHED, "algo-1")) == [Order(LEAVE)]
    assert job.feed(7.0, Reported(HostState.FINISHED, "algo-2")) == [Order(DRAIN)]


def test_a_stop_without_checkpoints_leaves_every_script_its_time() -> None:
    job = training(checkpoints=False)
    job.feed(5.0, StopRequested(STOP, 5.0))
    assert job.feed(6.0, Reported(HostState.FINISHED, "algo-1")) == []


def test_hosts_that_do_not_get_ready_again_end_the_job() -> None:
    job = training()
    fail(job, 5.0)
    job.feed(6.0, Reported(HostState.READY, "algo-1", 2))
    due = job.cluster.due
    assert due == 5.0 + VERDICT_DELAY + decision.CLEAR_TIMEOUT
    (order,) = job.feed(due, LocalEvent.TICK)
    reason = "was not ready for another attempt within 300 s"
    assert order.action.verdict.failure.reason == reason  # type: ignore[union-attr]


def lose(job: Job, now: float) -> List[Order]:
    job.feed(now, Lost("algo-2", "its connection closed", now))
    return job.feed(now + VERDICT_DELAY, LocalEvent.TICK)


def test_lost_host_ends_the_job_for_good() -> None:
    job = training()
    (order,) = lose(job, 5.0)
    assert order == Order(End(Verdict(Outcome.FAILURE, lost("algo-2", "its connection closed"))))
    assert job.feed(6.0, Reported(HostState.READY, "algo-2", 2)) == []


def test_failure_of_a_host_that_left_is_the_end() -> None:
    """A host whose server is frozen may leave before it is notified of another attempt."""
    job = training()
    job.feed(5.0, Failed(failure("algo-2"), 5.0))
    job.feed(5.1, Lost("algo-2", "it left before the job ended", 5.1))
    (order,) = job.feed(5.0 + VERDICT_DELAY, LocalEvent.TICK)
    assert order.action.verdict.failure == failure("algo-2")  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [FailureKind.CHECKPOINT, FailureKind.CHECKPOINT_USE])
def test_a_checkpoint_that_is_not_written_in_a_stop_is_a_failure(kind: FailureKind) -> None:
    job = training()
    job.feed(5.0, StopRequested(STOP, 5.0))
    job.feed(5.5, Failed(failure("algo-2"), 5.5), LocalEvent.TICK)
    assert job.feed(6.5, LocalEvent.TICK) == [], "what a script does in a stop is its own affair"
    unwritten = Failure("algo-1", Role.WORKER, "no space", kind, 1)
    job.feed(7.0, Failed(unwritten, 7.0), Reported(HostState.FINISHED, "algo-1"))
    (order,) = job.feed(7.0 + VERDICT_DELAY, LocalEvent.TICK)
    assert order.action == End(Verdict(Outcome.FAILURE, unwritten))


def test_report_of_a_later_attempt_is_ignored() -> None:
    job = Job()
    before = job.cluster
    assert job.feed(1.0, Reported(HostState.READY, "algo-2", 3)) == []
    assert job.cluster == before


ENDING_KINDS = sorted(
    set(FailureKind)
    - {
        FailureKind.EXCEPTION,
        FailureKind.EXIT_STATUS,
        FailureKind.SIGNAL,
        FailureKind.PEER,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.FROZEN,
        FailureKind.STALLED,
        FailureKind.LOST,
    },
    key=lambda kind: kind.value,
)


SAME = {
    "on another host": (
        Failure("algo-1", Role.WORKER, "ValueError: bad batch", FailureKind.EXCEPTION, 1),
        Failure("algo-2", Role.WORKER, "ValueError: bad batch", FailureKind.EXCEPTION, 1),
    ),
    "with a host in its text": (
        Failure("algo-1", Role.WORKER, "OSError: /run/algo-1/x", FailureKind.EXCEPTION, 1),
        Failure("algo-2", Role.WORKER, "OSError: /run/algo-2/x", FailureKind.EXCEPTION, 1),
    ),
    "stalled for another time": (
        Failure("algo-1", Role.WORKER, "stalled: no progress for 61 s", FailureKind.STALLED),
        Failure("algo-2", Role.WORKER, "stalled: no progress for 62 s", FailureKind.STALLED),
    ),
}
OTHER = {
    "killed on another host": (
        Failure("algo-1", Role.WORKER, "killed by SIGKILL", FailureKind.SIGNAL, 137),
        Failure("algo-2", Role.WORKER, "killed by SIGKILL", FailureKind.SIGNAL, 137),
    ),
    "with another reason": (
        Failure("algo-1", Role.WORKER, "ValueError: at step 20", FailureKind.EXCEPTION, 1),
        Failure("algo-1", Role.WORKER, "ValueError: at step 21", FailureKind.EXCEPTION, 1),
    ),
    "with another status": (
        Failure("algo-1", Role.WORKER, "exited without an exception", FailureKind.EXIT_STATUS, 1),
        Failure("algo-1", Role.WORKER, "exited without an exception", FailureKind.EXIT_STATUS, 2),
    ),
}


@pytest.mark.parametrize("case", [*SAME, *OTHER])
def test_repeated_failure_ends_the_job(case: str) -> None:
    first, second = {**SAME, **OTHER}[case]
    before = FailedAttempt(1, first, started=True, committed=True)
    failed = FailedAttempt(2, second, started=True, committed=False)
    repeated = "no checkpoint was written since" in refusal(RESTARTS, True, failed, [before])
    assert repeated is (case in SAME)
    assert not refusal(RESTARTS, True, replace(failed, committed=True), [before])


def ended(number: int, kind: FailureKind, reason: str = "x", **about: bool) -> FailedAttempt:
    fields = {"started": True, "committed": False, **about}
    return FailedAttempt(number, Failure("algo-1", Role.WORKER, reason, kind), **fields)


def test_a_failure_that_would_happen_again_is_the_end() -> None:
    for kind in ENDING_KINDS:
        assert "would happen again" in refusal(RESTARTS, True, ended(1, kind))


attempts = st.builds(
    ended,
    st.just(1),
    st.sampled_from(FailureKind),
    st.sampled_from(["x", "y"]),
    started=st.booleans(),
    committed=st.booleans(),
)
limits = st.none() | st.integers(0, 5)


@settings(max_examples=300, deadline=None)
@given(limits, st.booleans(), st.lists(attempts, min_size=1, max_size=12))
def test_whatever_fails_restarts_are_bounded(
    max_restarts: Optional[int], checkpoints: bool, failures: List[FailedAttempt]
) -> None:
    limit = max_restarts
    if limit is None:
        limit = 3 if checkpoints else 0
    before: List[FailedAttempt] = []
    for number, drawn in enumerate(failures, 1):
        attempt = replace(drawn, number=number)
        if refusal(max_restarts, checkpoints, attempt, before):
            break
        assert attempt.started
        assert attempt.failure.kind not in ENDING_KINDS
        before.append(attempt)
        commits = [n for n, each in enumerate(before) if each.committed]
        without = [each.failure for each in before[max(commits, default=0) :]]
        assert len(set(without)) == len(without), "no failure comes twice without a checkpoint"
    assert len(before) <= limit


class Simulated:
    """Hosts that obey: what they report is heard in any order, and too late now and then."""

    def __init__(self, names: Sequence[str], max_restarts: Optional[int]) -> None:
        self.names = names
        self.cluster = Cluster.of(names, "algo-1", max_restarts)
        self.attempts = dict.fromkeys(names, 1)
        self.starts: Dict[str, List[int]] = {name: [] for name in names}
        self.verdicts: Dict[str, Verdict] = {}
        self.stopped: Set[str] = set()
        self.mail: List[Event] = [Reported(HostState.JOINED, name) for name in names[1:]]
        self.mail += [Reported(HostState.READY, name) for name in names]
        self.now = 0.0

    def feed(self, event: Event, seconds: float) -> None:
        self.now += seconds
        self.cluster, orders = advance(self.cluster, event, self.now)
        for order in orders:
            for name in self.cluster.joined if order.to is None else [order.to]:
                self.obey(name, order.action)

    def obey(self, name: str, action: Any) -> None:
        assert name not in self.verdicts, "nothing after the end"
        if isinstance(action, End):
            self.verdicts[name] = action.verdict
        elif isinstance(action, Restart):
            assert action.attempt > self.attempts[name]
            self.attempts[name] = action.attempt
            step = HostState.FINISHED if name in self.stopped else HostState.READY
            self.mail.append(Reported(step, name, action.attempt))
        elif isinstance(action, Start):
            assert name not in self.stopped
            assert action.attempt == self.attempts[name]
            self.starts[name].append(action.attempt)
            self.mail += [
                Reported(step, name, action.attempt)
                for step in (HostState.CHECKPOINTING, HostState.STEPPED, HostState.FINISHED)
            ]
        elif isinstance(action, StopScripts):
            self.stopped.add(name)
            self.mail.append(Reported(HostState.FINISHED, name, self.attempts[name]))
        elif action == DRAIN:
            self.mail.append(Reported(HostState.DRAINED, name, self.attempts[name]))


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 3), limits, st.integers(0, 2**32))
def test_hosts_that_obey_always_come_to_one_end(
    hosts: int, max_restarts: Optional[int], seed: int
) -> None:
    job, chance = Simulated(NAMES[:hosts], max_restarts), Random(seed)
    faults = chance.randrange(7)
    for turn in range(300):
        if len(job.verdicts) == hosts:
            break
        disturbed = turn < 100  # then there are no more faults, and all goes in order
        kinds = ["mail"] * bool(job.mail) or ["tick"]
        if disturbed:
            kinds += ["tick", "checkpoint"] + ["fault"] * bool(faults) + ["stop"] * (turn > 50)
        kind, name = chance.choice(kinds), chance.choice(job.names)
        attempt = job.attempts[name]
        if kind == "mail":
            job.feed(job.mail.pop(chance.randrange(len(job.mail)) if disturbed else 0), 0.01)
        elif kind == "tick":
            job.feed(LocalEvent.TICK, 0.1)
        elif kind == "fault":
            faults -= 1
            job.feed(Failed(failure(name, f"fault {faults}"), job.now, attempt), 0.01)
        elif kind == "checkpoint":
            job.feed(Reported(HostState.CHECKPOINTED, name, attempt), 0.01)
        else:
            job.feed(StopRequested(Stop(name, 15), job.now), 0.01)
    assert len(job.verdicts) == hosts
    assert len(set(job.verdicts.values())) == 1, "one verdict for all"
    assert job.cluster.verdict is not None
    assert job.cluster.verdict.restarts == job.cluster.attempt - 1
    for starts in job.starts.values():
        assert starts == sorted(set(starts)), "no attempt is started twice"
