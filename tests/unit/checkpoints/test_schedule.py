"""When a checkpoint is due."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_training.checkpoints.schedule import SHARE, SHORTEST, STRIDE, Schedule


def test_steps_are_counted() -> None:
    schedule = Schedule(3, 0.0)
    assert [step for step in range(1, 10) if schedule.due(step, 0.0)] == [3, 6, 9]


def test_time_is_measured_and_waits_for_a_stride() -> None:
    schedule = Schedule(timedelta(seconds=5), 100.0)
    assert not schedule.due(STRIDE, 104.9)
    assert not schedule.due(STRIDE + 1, 105.0)
    assert schedule.due(2 * STRIDE, 105.0)
    schedule.taken(105.0)
    assert not schedule.due(3 * STRIDE, 109.0)


@given(costs=st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_automatic_checkpoints_take_no_more_than_their_share(costs: Any) -> None:
    schedule, now = Schedule(None, 0.0), 0.0
    for cost in costs:
        schedule.cost(cost)
        begun = now
        assert not schedule.due(STRIDE, begun + max(SHORTEST, cost / SHARE) * 0.999)
        now = begun + max(SHORTEST, cost / SHARE) * 1.001
        assert schedule.due(STRIDE, now)
        assert cost <= (now - begun) * SHARE
        schedule.taken(now)


@pytest.mark.parametrize("every", [0, -1, timedelta(0)])
def test_nothing_is_no_interval(every: Any) -> None:
    with pytest.raises(ValueError, match="every: expected a number or time above zero"):
        Schedule(every, 0.0)


@pytest.mark.parametrize("every", [1.5, "10", True])
def test_other_types_are_refused(every: Any) -> None:
    with pytest.raises(TypeError, match=r"every: expected a number of steps, a datetime.timedelta"):
        Schedule(every, 0.0)
