"""When a checkpoint is due, and where random numbers are seeded."""

import random
from datetime import timedelta
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_training.checkpoints.schedule import (
    SHARE,
    SHORTEST_S,
    STRIDE,
    RandomSeeds,
    Schedule,
)


def test_steps_are_counted() -> None:
    schedule = Schedule(3, 0.0)
    assert [step for step in range(1, 10) if schedule.due(step, 0.0)] == [3, 6, 9]


def test_time_is_measured_and_waits_for_a_stride() -> None:
    schedule = Schedule(timedelta(seconds=5), 100.0)
    assert not schedule.due(STRIDE, 104.9)
    assert not schedule.due(STRIDE + 1, 105.0)
    assert schedule.due(2 * STRIDE, 105.0)
    schedule.started(105.0)
    assert not schedule.due(3 * STRIDE, 109.0)


@given(costs=st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_automatic_checkpoints_take_no_more_than_their_share(costs: Any) -> None:
    schedule, now = Schedule(None, 0.0), 0.0
    for cost in costs:
        schedule.record_cost(cost)
        begun = now
        assert not schedule.due(STRIDE, begun + max(SHORTEST_S, cost / SHARE) * 0.999)
        now = begun + max(SHORTEST_S, cost / SHARE) * 1.001
        assert schedule.due(STRIDE, now)
        assert cost <= (now - begun) * SHARE
        schedule.started(now)


@pytest.mark.parametrize("every", [0, -1, timedelta(0)])
def test_interval_of_zero_is_rejected(every: Any) -> None:
    with pytest.raises(ValueError, match="every: expected a number or time above zero"):
        Schedule(every, 0.0)


@pytest.mark.parametrize("every", [1.5, "10", True])
def test_interval_of_other_type_is_rejected(every: Any) -> None:
    with pytest.raises(TypeError, match=r"every: expected a number of steps, a datetime.timedelta"):
        Schedule(every, 0.0)


def numbers() -> List[float]:
    mx, np = pytest.importorskip("mxnet"), pytest.importorskip("numpy")
    return [
        random.random(),
        float(np.random.rand()),
        float(mx.nd.random.uniform(shape=(1,)).asscalar()),
    ]


def after_batch(host: int, step: int, first: bool = False, seed: Any = 5) -> List[float]:
    RandomSeeds(seed, host, stride=4).seed_batch(step, first)
    return numbers()


def test_the_same_position_gives_the_same_numbers() -> None:
    assert after_batch(1, 8) == after_batch(1, 8)


def test_all_hosts_initialize_the_same_weights_and_then_differ() -> None:
    assert after_batch(0, 0, first=True) == after_batch(1, 0, first=True)
    for step in (1, 4):
        one, other = after_batch(0, step), after_batch(1, step)
        assert all(a != b for a, b in zip(one, other))


def test_mxnet_is_seeded_at_strides_and_at_the_start() -> None:
    mx = pytest.importorskip("mxnet")
    mx.random.seed(1)
    expected = numbers()[2]
    mx.random.seed(1)
    assert after_batch(1, 5)[2] == expected
    assert after_batch(1, 5, first=True)[2] != expected


def test_epochs_differ() -> None:
    seeds = RandomSeeds(5, 0, 4)
    seeds.seed_epoch(1)
    one = numbers()
    seeds.seed_epoch(2)
    assert all(a != b for a, b in zip(one, numbers()))


def test_without_a_seed_the_generators_are_left_alone() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    assert after_batch(0, 0, first=True, seed=None)[0] == expected
