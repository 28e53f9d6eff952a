"""Every ending, without a process: the decision, its orders, and what must hold of both."""

from typing import Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster import decision
from sagemaker_mxnet_training.cluster.decision import (
    VERDICT_DELAY,
    Cluster,
    Drain,
    Drained,
    End,
    Event,
    Failed,
    Finished,
    FirstStep,
    GaveUp,
    Joined,
    Lost,
    Order,
    Phase,
    Ready,
    Start,
    Stepped,
    Stop,
    StopRequested,
    StopScripts,
    Tick,
    Verdict,
    advance,
    lost,
)

NAMES = ("algo-1", "algo-2", "algo-3", "algo-4")
STOP = Stop("algo-1", 15)


class Job:
    """A cluster that is fed, with all orders so far."""

    def __init__(self, hosts: int = 2, joined: bool = True, start_time: float = 0.0) -> None:
        self.names = NAMES[:hosts]
        self.cluster = Cluster.of(self.names, "algo-1", start_time)
        self.orders: List[Order] = []
        for name in self.names[1:] if joined else ():
            self.feed(0.0, Joined(name))

    def feed(self, now: float, *events: Event) -> List[Order]:
        """Feed events, all seen at one time; return the orders that follow."""
        new: List[Order] = []
        for event in events:
            self.cluster, orders = advance(self.cluster, event, now)
            new.extend(orders)
        self.orders.extend(new)
        return new

    def all(self, now: float, kind: type) -> List[Order]:
        """Feed an event of one kind for every host."""
        return self.feed(now, *(kind(name) for name in self.names))


def failure(host: str, reason: str = "boom") -> Failure:
    return Failure(host, Role.WORKER, reason, FailureKind.EXCEPTION, 1)


def test_a_job_in_which_all_goes_well_passes_through_all_phases() -> None:
    job = Job()
    assert job.feed(1.0, Ready("algo-1")) == []
    assert job.cluster.phase is Phase.GATHERING
    assert job.feed(1.0, Ready("algo-2")) == [Order(Start())]
    assert job.cluster.phase is Phase.TRAINING
    assert job.feed(2.0, Stepped(), Stepped()) == [Order(FirstStep())]
    assert job.all(3.0, Finished) == [Order(Drain())]
    assert job.cluster.phase is Phase.DRAINING
    assert job.all(4.0, Drained) == [Order(End(Verdict(Outcome.SUCCESS)))]
    assert job.cluster.phase is Phase.ENDED


def test_roles_start_no_sooner_than_they_may() -> None:
    job = Job(start_time=5.0)
    assert job.all(4.0, Ready) == []
    assert job.cluster.due == 5.0
    assert job.feed(4.9, Tick()) == []
    assert job.feed(5.0, Tick()) == [Order(Start())]
    assert job.cluster.due is None


def test_a_stop_before_the_start_time_starts_nothing() -> None:
    job = Job(start_time=5.0)
    job.all(4.0, Ready)
    assert job.feed(4.5, StopRequested(STOP, 4.5)) == [Order(StopScripts(STOP))]
    assert job.feed(6.0, Tick()) == []


def test_the_verdict_waits_for_an_earlier_failure_to_arrive() -> None:
    job = Job()
    job.all(1.0, Ready)
    assert job.feed(10.02, Failed(failure("algo-1", "lost its peer"), 10.02)) == []
    assert job.feed(10.05, Failed(failure("algo-2"), 10.0)) == []
    assert job.cluster.due == 10.02 + VERDICT_DELAY
    assert job.feed(10.1, Tick()) == []
    assert job.feed(10.4, Tick()) == [Order(End(Verdict(Outcome.FAILURE, failure("algo-2"))))]


def test_a_failure_after_a_stop_is_no_failure() -> None:
    job = Job()
    job.all(1.0, Ready)
    job.feed(5.0, StopRequested(STOP, 5.0))
    assert job.feed(6.0, Failed(failure("algo-2"), 6.0)) == []
    assert job.feed(20.0, *map(Finished, NAMES[:2])) == [Order(Drain())]
    assert job.all(20.0, Drained) == [Order(End(Verdict(Outcome.STOP)))]


def test_a_failure_before_a_stop_is_the_cause_even_when_it_is_heard_later() -> None:
    job = Job()
    job.all(1.0, Ready)
    job.feed(5.0, StopRequested(STOP, 5.0))
    job.feed(5.1, Failed(failure("algo-2"), 4.9))
    assert job.feed(6.0, Tick()) == [Order(End(Verdict(Outcome.FAILURE, failure("algo-2"))))]


def test_a_stop_before_training_waits_for_members_only() -> None:
    job = Job(hosts=3, joined=False)
    job.feed(0.0, Joined("algo-2"), Ready("algo-1"))
    assert job.feed(1.0, StopRequested(STOP, 1.0)) == [Order(StopScripts(STOP))]
    assert job.cluster.phase is Phase.STOPPING
    assert job.feed(2.0, Finished("algo-1")) == []
    assert job.feed(2.0, Finished("algo-2")) == [Order(Drain())]
    assert job.feed(2.0, Drained("algo-1"), Drained("algo-2")) == [
        Order(End(Verdict(Outcome.STOP)))
    ]


def test_a_host_that_joins_during_a_stop_is_told_and_waited_for() -> None:
    job = Job(joined=False)
    job.feed(1.0, StopRequested(STOP, 1.0), Finished("algo-1"))
    assert job.cluster.phase is Phase.DRAINING
    assert job.feed(2.0, Joined("algo-2")) == [
        Order(StopScripts(STOP), "algo-2"),
        Order(Drain(), "algo-2"),
    ]
    assert job.feed(3.0, Drained("algo-1")) == []
    assert job.feed(3.0, Drained("algo-2")) == [Order(End(Verdict(Outcome.STOP)))]


def test_a_host_that_joins_after_the_end_is_told_the_verdict() -> None:
    job = Job(joined=False)
    job.feed(1.0, Failed(failure("algo-1"), 1.0))
    job.feed(2.0, Tick())
    verdict = Verdict(Outcome.FAILURE, failure("algo-1"))
    assert job.feed(3.0, Joined("algo-2")) == [Order(End(verdict), "algo-2")]
    assert job.cluster.joined == {"algo-1", "algo-2"}
    assert job.feed(4.0, Lost("algo-2", "left", 4.0)) == []
    assert job.cluster.joined == {"algo-1"}


def test_a_host_that_is_lost_during_a_stop_is_waited_for_no_longer() -> None:
    for reached in ([], [Finished("algo-2")], [Finished("algo-2"), Drained("algo-2")]):
        job = Job()
        job.all(1.0, Ready)
        job.feed(2.0, StopRequested(STOP, 2.0), *reached)
        job.feed(3.0, Lost("algo-2", "gone", 3.0))
        job.feed(4.0, Finished("algo-1"), Drained("algo-1"))
        assert job.cluster.verdict == Verdict(Outcome.STOP)
        assert [order.action for order in job.orders] == [
            Start(),
            StopScripts(STOP),
            Drain(),
            End(Verdict(Outcome.STOP)),
        ]


def test_a_lost_host_is_the_failure_of_a_job_that_does_not_stop() -> None:
    job = Job()
    job.all(1.0, Ready)
    job.feed(2.0, Lost("algo-2", "silent for 15 s", 2.0))
    verdict = Verdict(Outcome.FAILURE, lost("algo-2", "silent for 15 s"))
    assert job.feed(3.0, Tick()) == [Order(End(verdict))]
    assert verdict.failure is not None
    assert verdict.failure.kind is FailureKind.LOST


def test_giving_up_ends_a_stop_at_once() -> None:
    job = Job()
    job.all(1.0, Ready)
    job.feed(2.0, StopRequested(STOP, 2.0))
    assert job.feed(3.0, GaveUp()) == [Order(End(Verdict(Outcome.STOP)))]


def test_giving_up_does_not_hide_a_failure_before_the_stop() -> None:
    job = Job()
    job.feed(2.0, Failed(failure("algo-2"), 1.9))
    job.feed(2.0, StopRequested(STOP, 2.0))
    assert job.feed(2.1, GaveUp()) == [Order(End(Verdict(Outcome.FAILURE, failure("algo-2"))))]


def test_a_stop_while_draining_is_ordered_and_counts() -> None:
    job = Job()
    job.all(1.0, Ready)
    job.all(2.0, Finished)
    assert job.feed(3.0, StopRequested(STOP, 3.0)) == [Order(StopScripts(STOP))]
    assert job.all(4.0, Drained) == [Order(End(Verdict(Outcome.STOP)))]


def test_a_stranger_to_the_job_changes_nothing() -> None:
    job = Job()
    job.all(1.0, Ready)
    before = job.cluster
    eve = "eve"
    job.feed(1.0, Joined(eve), Finished(eve), Drained(eve), Ready(eve), Lost(eve, "", 1.0))
    assert job.cluster == before


def test_a_verdict_survives_the_way_to_another_host() -> None:
    for verdict in (
        Verdict(Outcome.SUCCESS),
        Verdict(Outcome.STOP),
        Verdict(Outcome.FAILURE, failure("algo-2")),
    ):
        assert Verdict.from_json(verdict.to_json()) == verdict


KINDS = (
    Joined, Joined, Lost, Ready, Ready, Stepped, Finished, Drained, Failed, StopRequested, GaveUp,
    Tick,
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
        if kind is Joined and absent:
            name = draw(st.sampled_from(sorted(absent)))
            absent.discard(name)
            members.add(name)
            heard.append((now, Joined(name)))
        elif kind is Lost and len(members) > 1:
            name = draw(st.sampled_from(sorted(members - {"algo-1"})))
            members.discard(name)
            heard.append((now, Lost(name, f"gone {index}", now)))
        elif kind is Failed:
            heard.append((now, Failed(failure(name, f"fault {index}"), happened)))
        elif kind is StopRequested:
            heard.append((now, StopRequested(Stop(name, 15), happened)))
        elif kind in (Ready, Finished, Drained):
            heard.append((now, kind(name)))
        elif kind in (Stepped, GaveUp, Tick):
            heard.append((now, kind()))
    return names, heard


def completed(history: History) -> List[Tuple[float, Event]]:
    """Append what sooner or later happens: all that live get on, all that do not are noticed."""
    names, heard = history
    end = (heard[-1][0] if heard else 0.0) + VERDICT_DELAY
    came = {"algo-1"} | {event.host for _, event in heard if isinstance(event, Joined)}
    gone = {event.host for _, event in heard if isinstance(event, Lost)}
    tail: List[Event] = [Tick(), *(Joined(name) for name in names if name not in came)]
    for kind in (Ready, Finished, Drained):
        tail += [kind(name) for name in names if name not in gone]
    return heard + [(end, event) for event in tail] + [(end + VERDICT_DELAY, Tick())]


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
    """Return how a job must end by what was heard up to its end: the rule, told another way."""
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
    if stops or isinstance(seen[-1], GaveUp):
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
    turn = {Start: 0, FirstStep: 1, StopScripts: 2, Drain: 3, End: 4}
    given_to: Dict[str, List[type]] = {name: [] for name in history[0]}
    for _, _, after, orders in played(history[0], completed(history)):
        for order in orders:
            hosts: FrozenSet[str] = after.joined if order.to is None else frozenset((order.to,))
            assert hosts <= after.joined, "only members can be given orders"
            for host in hosts:
                given_to[host].append(type(order.action))
    for kinds in given_to.values():
        assert len(kinds) == len(set(kinds)), "each at most once"
        assert End not in kinds[:-1], "nothing after the end"
        without_notes = [turn[kind] for kind in kinds if kind not in (FirstStep, StopScripts)]
        assert without_notes == sorted(without_notes)
        if StopScripts in kinds:
            assert Start not in kinds[kinds.index(StopScripts) :], "no start after a stop"


@settings(max_examples=250, deadline=None)
@given(histories())
def test_success_needs_every_host_and_no_fault(history: History) -> None:
    seen: List[Event] = []
    for _, event, after, _ in played(*history):
        seen.append(event)
        if after.verdict == Verdict(Outcome.SUCCESS):
            names: Set[str] = set(history[0])
            assert {e.host for e in seen if isinstance(e, Drained)} == names
            assert {e.host for e in seen if isinstance(e, Finished)} == names
            assert not any(isinstance(e, (Failed, Lost, StopRequested, GaveUp)) for e in seen)
            break


@settings(max_examples=250, deadline=None)
@given(histories())
def test_a_phase_never_comes_back_and_nothing_changes_a_verdict(history: History) -> None:
    order = list(Phase)
    for before, event, after, orders in played(*history):
        assert order.index(after.phase) >= order.index(before.phase)
        if before.phase is Phase.ENDED:
            assert after.verdict == before.verdict
            assert not orders or isinstance(event, Joined)


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
        assert advance(cluster, Tick(), now) == (cluster, ())
    if due is not None:
        after, orders = advance(cluster, Tick(), max(now, due))
        assert orders
        assert after.due is None


def test_the_delay_of_a_verdict_is_short_against_the_promise_of_five_seconds() -> None:
    assert decision.VERDICT_DELAY < 1.0
