"""How processes of a model ended, and what to do about it."""

import signal
from typing import List

import pytest

from sagemaker_mxnet_serving.front.endings import ending
from sagemaker_mxnet_toolkit.container import OomMonitor
from sagemaker_mxnet_toolkit.failure import FailureKind


@pytest.mark.parametrize(
    ("returncode", "kills", "kind", "how", "remedy"),
    [
        (-9, [0, 1], FailureKind.OUT_OF_MEMORY, "for lack of memory", "SAGEMAKER_MODEL_SERVER_WO"),
        (-9, [1, 1], FailureKind.MODEL, "was killed by SIGKILL", "kernel log"),
        (-signal.SIGSEGV, [0, 1], FailureKind.MODEL, "by SIGSEGV", "Python stack"),
        (7, [0, 0], FailureKind.MODEL, "ended with status 7", "logged before"),
    ],
)
def test_ending_has_a_remedy(
    returncode: int, kills: List[int], kind: FailureKind, how: str, remedy: str
) -> None:
    found = ending(returncode, OomMonitor(0.0, iter(kills).__next__))
    assert found.kind is kind
    assert how in found.how
    assert remedy in found.remedy


def test_kill_by_the_server_is_not_attributed_to_the_kernel() -> None:
    oom = OomMonitor(0.0, iter([0, 1, 1]).__next__)
    assert ending(-9, oom).kind is FailureKind.OUT_OF_MEMORY
    found = ending(-9, oom, killed=True)
    assert (found.kind, found.how) == (FailureKind.MODEL, "was killed by SIGKILL")
    assert "this server killed it" in found.remedy


def test_processes_that_are_killed_together_have_one_cause() -> None:
    kills = iter([0, 2, 2])
    oom = OomMonitor(0.0, kills.__next__)
    assert {ending(-9, oom).kind for _ in range(2)} == {FailureKind.OUT_OF_MEMORY}
