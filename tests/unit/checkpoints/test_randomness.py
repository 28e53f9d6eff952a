"""Random numbers follow from seed, host and position."""

import random
from typing import Any, List

import pytest

mx = pytest.importorskip("mxnet")
np = pytest.importorskip("numpy")

from sagemaker_mxnet_training.checkpoints.randomness import Randomness  # noqa: E402


def numbers() -> List[float]:
    return [
        random.random(),
        float(np.random.rand()),
        float(mx.nd.random.uniform(shape=(1,)).asscalar()),
    ]


def after_batch(host: int, step: int, first: bool = False, seed: Any = 5) -> List[float]:
    Randomness(seed, host, stride=4).batch(step, first)
    return numbers()


def test_the_same_position_gives_the_same_numbers() -> None:
    assert after_batch(1, 8) == after_batch(1, 8)


def test_all_hosts_initialize_the_same_weights_and_then_differ() -> None:
    assert after_batch(0, 0, first=True) == after_batch(1, 0, first=True)
    for step in (1, 4):
        one, other = after_batch(0, step), after_batch(1, step)
        assert all(a != b for a, b in zip(one, other))


def test_mxnet_is_seeded_at_strides_and_where_a_run_begins() -> None:
    mx.random.seed(1)
    expected = numbers()[2]
    mx.random.seed(1)
    assert after_batch(1, 5)[2] == expected
    assert after_batch(1, 5, first=True)[2] != expected


def test_epochs_differ() -> None:
    randomness = Randomness(5, 0, 4)
    randomness.epoch(1)
    one = numbers()
    randomness.epoch(2)
    assert all(a != b for a, b in zip(one, numbers()))


def test_without_a_seed_the_generators_are_left_alone() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    assert after_batch(0, 0, first=True, seed=None)[0] == expected
