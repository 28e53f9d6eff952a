"""Every ending, without a process: the decision function and what must hold of it."""

from typing import List, Tuple

from hypothesis import given, settings
from hypothesis import strategies as st
from sagemaker_mxnet_training.cluster.ending import (
    SETTLE,
    Cluster,
    Drained,
    Event,
    Failed,
    Finished,
    Phase,
    Ready,
    Stop,
    StopRequested,
    Tick,
    Verdict,
    advance,
)

from sagemaker_mxnet_toolkit.failure import Failure, Outcome, Role
from sagemaker_mxnet_training.cluster import ending

NAMES = ("algo-1", "algo-2", "algo-3", "algo-4")


def run(cluster: Cluster, *events: Event, now: float = 0.0) -> Cluster:
    for event in events:
        cluster = advance(cluster, event, now)
    return cluster


def failure(host: str, reason: str = "boom") -> Failure:
    return Failure(host, Role.WORKER, reason, 1)


def every(kind: type, hosts: Tuple[str, ...] = NAMES[:2]) -> List[Event]:
    return [kind(host) for host in hosts]


def test_a_job_in_which_all_goes_well_passes_through_all_phases() -> None:
    cluster = Cluster.of(NAMES[:2])
    cluster = run(cluster, Ready("algo-1"))
    assert cluster.phase is Phase.GATHERING
    cluster = run(cluster, Ready("algo-2"))
    assert cluster.phase is Phase.TRAINING
    cluster = run(cluster, *every(Finished))
    assert cluster.phase is Phase.DRAINING
    cluster = run(cluster, *every(Drained))
    assert cluster.phase is Phase.ENDED
    assert cluster.verdict == Verdict(Outcome.SUCCESS)


def test_the_verdict_waits_for_an_earlier_failure_to_arrive() -> None:
    cluster = run(Cluster.of(NAMES[:2]), *every(Ready))
    cluster = advance(cluster, Failed(failure("algo-1", "lost its peer"), 10.02), 10.02)
    assert cluster.verdict is None
    cluster = advance(cluster, Failed(failure("algo-2", "boom"), 10.0), 10.05)
    cluster = advance(cluster, Tick(10.1), 10.1)
    assert cluster.verdict is None
    cluster = advance(cluster, Tick(10.4), 10.4)
    assert cluster.verdict == Verdict(Outcome.FAILURE, failure("algo-2", "boom"))


def test_a_failure_after_a_stop_is_no_failure() -> None:
    cluster = run(Cluster.of(NAMES[:2]), *every(Ready))
    cluster = advance(cluster, StopRequested(Stop("algo-1", 15), 5.0), 5.0)
    cluster = advance(cluster, Failed(failure("algo-2"), 6.0), 6.0)
    cluster = run(cluster, *every(Finished), *every(Drained), now=20.0)
    assert cluster.verdict == Verdict(Outcome.STOP)


def test_a_failure_before_a_stop_is_the_cause_even_when_it_is_heard_later() -> None:
    cluster = run(Cluster.of(NAMES[:2]), *every(Ready))
    cluster = advance(cluster, StopRequested(Stop("algo-1", 15), 5.0), 5.0)
    cluster = advance(cluster, Failed(failure("algo-2"), 4.9), 5.1)
    cluster = advance(cluster, Tick(6.0), 6.0)
    assert cluster.verdict == Verdict(Outcome.FAILURE, failure("algo-2"))


def test_a_stop_while_hosts_gather_does_not_wait_for_them_to_be_ready() -> None:
    cluster = run(Cluster.of(NAMES[:2]), Ready("algo-1"))
    cluster = advance(cluster, StopRequested(Stop("algo-1", 15), 1.0), 1.0)
    cluster = run(cluster, *every(Finished), *every(Drained), now=2.0)
    assert cluster.verdict == Verdict(Outcome.STOP)


def test_a_stranger_to_the_job_changes_nothing() -> None:
    cluster = run(Cluster.of(NAMES[:2]), *every(Ready))
    assert run(cluster, Finished("eve"), Drained("eve"), Ready("eve")) == cluster


def test_a_verdict_survives_the_way_to_another_host() -> None:
    for verdict in (
        Verdict(Outcome.SUCCESS),
        Verdict(Outcome.STOP),
        Verdict(Outcome.FAILURE, failure("algo-2")),
    ):
        assert Verdict.from_json(verdict.to_json()) == verdict


hosts = st.integers(1, 4).map(lambda count: NAMES[:count])


@st.composite
def histories(draw: st.DrawFn) -> Tuple[Tuple[str, ...], List[Tuple[float, Event]]]:
    """Any events of up to four hosts, in any order, each heard some time after it happened."""
    names = draw(hosts)
    name = st.sampled_from(names)
    now = 0.0
    heard: List[Tuple[float, Event]] = []
    for index in range(draw(st.integers(0, 30))):
        now += draw(st.floats(0, 1))
        age = draw(st.floats(0, 2))
        event = draw(
            st.one_of(
                st.builds(Ready, name),
                st.builds(Finished, name),
                st.builds(Drained, name),
                st.just(Tick(now)),
                st.builds(
                    lambda host, index=index, age=age, now=now: Failed(
                        failure(host, f"fault {index}"), now - age
                    ),
                    name,
                ),
                st.builds(
                    lambda host, age=age, now=now: StopRequested(Stop(host, 15), now - age), name
                ),
            )
        )
        heard.append((now, event))
    return names, heard


def completed(
    names: Tuple[str, ...], heard: List[Tuple[float, Event]]
) -> List[Tuple[float, Event]]:
    """Append what every live host does sooner or later, and time."""
    end = (heard[-1][0] if heard else 0.0) + SETTLE
    tail: List[Event] = [Tick(end)]
    for kind in (Ready, Finished, Drained):
        tail += every(kind, names)
    return heard + [(end, event) for event in [*tail, Tick(end)]]


@settings(max_examples=500, deadline=None)
@given(histories())
def test_every_history_ends_once_and_names_the_earliest_failure(
    history: Tuple[Tuple[str, ...], List[Tuple[float, Event]]],
) -> None:
    names, heard = history
    cluster = Cluster.of(names)
    verdicts = []
    before_end: List[Event] = []
    for now, event in completed(names, heard):
        was_over = cluster.phase is Phase.ENDED
        after = advance(cluster, event, now)
        if was_over:
            assert after == cluster, "nothing changes after the end"
        else:
            before_end.append(event)
        if after.verdict is not None and not was_over:
            verdicts.append(after.verdict)
        cluster = after
    assert len(verdicts) == 1, "it ends, and once"
    failures = [event for event in before_end if isinstance(event, Failed)]
    stops = [event for event in before_end if isinstance(event, StopRequested)]
    first_stop = min((event.time for event in stops), default=float("inf"))
    first = min(failures, key=lambda event: event.time, default=None)
    if first is not None and first.time < first_stop:
        assert verdicts[0] == Verdict(Outcome.FAILURE, first.failure)
    else:
        assert verdicts[0] == Verdict(Outcome.STOP if stops else Outcome.SUCCESS)


@settings(max_examples=300, deadline=None)
@given(histories())
def test_success_needs_every_host_and_no_fault(
    history: Tuple[Tuple[str, ...], List[Tuple[float, Event]]],
) -> None:
    names, heard = history
    cluster = Cluster.of(names)
    seen: List[Event] = []
    for now, event in heard:
        cluster = advance(cluster, event, now)
        seen.append(event)
        if cluster.verdict == Verdict(Outcome.SUCCESS):
            assert {e.host for e in seen if isinstance(e, Drained)} == set(names)
            assert {e.host for e in seen if isinstance(e, Finished)} == set(names)
            assert not any(isinstance(e, (Failed, StopRequested)) for e in seen)
            break


@settings(max_examples=200, deadline=None)
@given(histories())
def test_a_phase_never_comes_back(
    history: Tuple[Tuple[str, ...], List[Tuple[float, Event]]],
) -> None:
    names, heard = history
    order = list(Phase)
    cluster = Cluster.of(names)
    for now, event in heard:
        after = advance(cluster, event, now)
        assert order.index(after.phase) >= order.index(cluster.phase)
        cluster = after


def test_the_settling_time_is_short_against_the_promise_of_five_seconds() -> None:
    assert ending.SETTLE < 1.0
