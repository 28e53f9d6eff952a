"""Causes of failures: the memory limit, and what processes report."""

from types import SimpleNamespace
from typing import Any, Mapping, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.container import OOM_WINDOW, OomMonitor, exhausted_memory
from sagemaker_mxnet_toolkit.failure import FailureKind, Role
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_training.host.failures import diagnose


class Kernel:
    """Counts kills."""

    def __init__(self, kills: Optional[int] = 0) -> None:
        self.kills = kills
        self.asked = 0

    def __call__(self) -> Optional[int]:
        self.asked += 1
        return self.kills


def test_kills_before_the_job_explain_nothing() -> None:
    monitor = OomMonitor(0.0, Kernel(7))
    assert monitor.check(1.0) == 0
    assert not monitor.explains(1.0)


def test_kill_explains_only_failures_soon_after_it() -> None:
    kernel = Kernel()
    monitor = OomMonitor(0.0, kernel)
    kernel.kills = 2
    assert monitor.check(10.0) == 2
    assert monitor.check(10.1) == 0
    assert monitor.explains(9.5), "noticed after the failure that it caused"
    assert monitor.explains(10.0 + OOM_WINDOW)
    assert not monitor.explains(10.1 + OOM_WINDOW)
    kernel.kills = 3
    assert monitor.check(100.0) == 1
    assert monitor.explains(100.0)


def test_kernel_is_read_once_a_second_at_most() -> None:
    kernel = Kernel()
    monitor = OomMonitor(0.0, kernel)
    for turn in range(500):
        monitor.poll(turn / 100)
    assert kernel.asked <= 1 + 5


def test_a_kernel_that_does_not_count() -> None:
    monitor = OomMonitor(0.0, Kernel(None))
    assert monitor.check(1.0) == 0
    assert not monitor.explains(1.0)


@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(0, 2)), max_size=30),
    st.floats(0.0, 30.0),
)
def test_only_the_time_since_the_last_kill_counts(steps: Any, later: float) -> None:
    kernel, now, last = Kernel(), 0.0, None
    monitor = OomMonitor(now, kernel)
    for elapsed, kills in steps:
        now += elapsed
        assert kernel.kills is not None
        kernel.kills += kills
        monitor.check(now)
        last = now if kills else last
    assert monitor.explains(now + later) == (last is not None and now + later - last <= OOM_WINDOW)


def child(
    role: Role,
    code: Optional[int],
    told: Optional[Mapping[str, Any]] = None,
    rank: Optional[int] = None,
    printed: str = "its last lines",
) -> Any:
    stderr = SimpleNamespace(text=lambda: printed)
    fake = SimpleNamespace(
        spec=SimpleNamespace(role=role, rank=rank), returncode=code, failure=told, stderr=stderr
    )
    fake.failure_kind = Child.failure_kind.__get__(fake)
    return fake


RAISED = {"event": "failed", "reason": "ValueError: boom", "detail": "Traceback"}


PRINTED = "after printing: its last lines"


@pytest.mark.parametrize(
    ("role", "code", "told", "kind", "reason"),
    [
        (Role.WORKER, 1, RAISED, FailureKind.EXCEPTION, "ValueError: boom"),
        (Role.WORKER, None, RAISED, FailureKind.EXCEPTION, "ValueError: boom"),
        (
            Role.WORKER,
            3,
            {**RAISED, "kind": "exit status"},
            FailureKind.EXIT_STATUS,
            "ValueError: boom",
        ),
        (Role.INSTALL, 1, RAISED, FailureKind.REQUIREMENTS, "ValueError: boom"),
        (Role.FETCH, 1, RAISED, FailureKind.CODE, "ValueError: boom"),
        (
            Role.FETCH,
            1,
            {**RAISED, "kind": "internal"},
            FailureKind.INTERNAL,
            "ValueError: boom",
        ),
        (
            Role.SERVER,
            1,
            {**RAISED, "kind": ["nonsense"]},
            FailureKind.EXCEPTION,
            "ValueError: boom",
        ),
        (Role.WORKER, -9, None, FailureKind.SIGNAL, "killed by SIGKILL"),
        (
            Role.WORKER,
            5,
            None,
            FailureKind.EXIT_STATUS,
            f"exited without an exception, {PRINTED}",
        ),
        (Role.SERVER, -6, None, FailureKind.SIGNAL, f"killed by SIGABRT, {PRINTED}"),
    ],
)
def test_kind_is_what_the_child_says_or_how_it_ended(
    role: Role, code: Optional[int], told: Any, kind: FailureKind, reason: str
) -> None:
    monitor = OomMonitor(0.0, Kernel())
    failure = diagnose(child(role, code, told), "algo-1", monitor, 1.0, str)
    assert (failure.kind, failure.reason) == (kind, reason)
    assert failure.detail == ("Traceback" if told else "its last lines")


RESET = "Connection reset by peer"


@pytest.mark.parametrize(
    ("code", "told", "kind"),
    [
        (1, None, FailureKind.PEER),
        (-6, None, FailureKind.PEER),
        (1, {**RAISED, "kind": "exit status"}, FailureKind.PEER),
        (1, {**RAISED, "kind": "peer"}, FailureKind.PEER),
        (1, {**RAISED, "reason": f"ConnectionResetError: {RESET}"}, FailureKind.EXCEPTION),
        (-9, None, FailureKind.SIGNAL),
    ],
)
def test_rank_that_lost_its_peer(code: int, told: Any, kind: FailureKind) -> None:
    told = told and {**told, "detail": f"Traceback\n{RESET}"}
    failed = child(Role.WORKER, code, told, rank=1, printed=RESET)
    assert diagnose(failed, "algo-1", OomMonitor(0.0, Kernel()), 1.0, str).kind is kind


def test_memory_does_not_explain_that_a_rank_lost_its_peer() -> None:
    kernel = Kernel()
    monitor = OomMonitor(0.0, kernel)
    kernel.kills = 1
    monitor.check(1.0)
    lost = child(Role.WORKER, 1, {**RAISED, "kind": "peer"}, rank=1)
    assert diagnose(lost, "algo-1", monitor, 1.0, str).kind is FailureKind.PEER
    killed = child(Role.WORKER, -9, rank=0)
    assert diagnose(killed, "algo-1", monitor, 1.0, str).kind is FailureKind.OUT_OF_MEMORY


def test_failure_soon_after_a_kill_is_out_of_memory() -> None:
    kernel = Kernel()
    monitor = OomMonitor(0.0, kernel)
    kernel.kills = 1
    monitor.check(5.0)
    failure = diagnose(child(Role.WORKER, -9), "algo-1", monitor, 5.0, str)
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert failure.reason.startswith(f"out of memory: {exhausted_memory()}")
    assert failure.reason.endswith("(killed by SIGKILL)")


def test_failure_long_after_a_survived_kill_mentions_it() -> None:
    kernel = Kernel()
    monitor = OomMonitor(0.0, kernel)
    kernel.kills = 1
    monitor.check(5.0)
    failure = diagnose(child(Role.WORKER, 1, RAISED), "algo-1", monitor, 125.0, str)
    assert failure.kind is FailureKind.EXCEPTION
    assert failure.reason == "ValueError: boom"
    assert failure.detail.splitlines() == [
        "Traceback",
        "(the kernel killed another process on this host for lack of memory 120 s earlier)",
    ]


def test_secrets_are_removed_here() -> None:
    monitor = OomMonitor(0.0, Kernel())
    failure = diagnose(
        child(Role.WORKER, 1, RAISED), "algo-1", monitor, 1.0, lambda text: text.replace("o", "*")
    )
    assert failure.reason == "ValueErr*r: b**m"
