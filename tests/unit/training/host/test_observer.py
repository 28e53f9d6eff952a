"""The observer of processes: their usage, measured at a low and bounded cost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List, cast

import pytest

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.host.observer import (
    MAX_SHARE,
    POINTS,
    SAMPLE_PERIOD,
    Observer,
    Point,
    Track,
    Usage,
    measure,
    next_sample,
)
from tests.support.jobs import eventually

FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(60)
"""
BUSY = "while True: pass"


@pytest.fixture
def family() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that waits, with a child that works."""
    parent = subprocess.Popen(
        [sys.executable, "-c", FAMILY.format(child=BUSY)], start_new_session=True
    )
    yield parent
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


def test_descendants_count(family: "subprocess.Popen[bytes]") -> None:
    pids = [family.pid]
    eventually(lambda: measure(pids)[family.pid].cpu > 0.2, "the work of the child")
    own = Path(f"/proc/{family.pid}/statm").read_text().split()[1]
    assert measure(pids)[family.pid].memory > int(own) * 4096


def test_what_an_ended_child_has_used_is_not_forgotten() -> None:
    """Data loading processes come and go."""
    # More than is asked for below: user and system time are counted in whole steps of 0.01 s each.
    work = "import time\nwhile time.process_time() < 0.4: pass"
    code = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {work!r}])\n"
    parent = subprocess.Popen([sys.executable, "-c", code + "print(flush=True)\ntime.sleep(60)"],
                              stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert measure([parent.pid])[parent.pid].cpu >= 0.3
    finally:
        parent.kill()
        parent.communicate()


def test_work_is_told_from_waiting(family: "subprocess.Popen[bytes]") -> None:
    code = "import time; print(flush=True); time.sleep(60)"
    idle = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert idle.stdout is not None
        idle.stdout.readline()
        pids = [idle.pid, family.pid]
        before = measure(pids)
        eventually(lambda: measure(pids)[family.pid].cpu > before[family.pid].cpu + 0.1, "work")
        assert measure(pids)[idle.pid].bytes == before[idle.pid].bytes
    finally:
        idle.kill()
        idle.communicate()
    assert idle.pid not in measure(pids), "gone"


def test_nobody_to_look_at() -> None:
    assert measure([]) == {}
    assert measure([1]) == {}, "no child of ours"


@pytest.mark.parametrize("cost", [0.0, 0.0001, 0.003, 0.05, 2.0])
def test_samples_cost_a_bounded_share(cost: float) -> None:
    due = next_sample(cost, 100.0 + cost)
    assert due - 100.0 >= SAMPLE_PERIOD
    assert cost <= MAX_SHARE * (due - 100.0)


def grown(looks: int) -> Track:
    """A process that uses half a core, and once for one look a lot of memory."""
    track = Track(0.0)
    for look in range(1, looks + 1):
        track.add(float(look), Usage(cpu=look / 2, memory=9999 if look == 777 else 10))
    return track


def test_points_are_kept_as_they_come() -> None:
    track = grown(5)
    assert track.points == [Point(0.0, 0.0, 0), *(Point(i, i / 2, 10) for i in range(1, 6))]
    assert track.cpu_percent() == [(i, 50.0) for i in range(5)]


@pytest.mark.parametrize("looks", [POINTS, POINTS + 1, 10 * POINTS, 604_800])
def test_a_week_is_bounded_and_keeps_its_sums_and_its_peak(looks: int) -> None:
    track = grown(looks)
    assert len(track.points) <= POINTS
    assert len(track.points) > POINTS / 4
    assert max(point.memory for point in track.points) == 9999
    assert {round(load, 6) for _, load in track.cpu_percent()} == {50.0}
    assert track.points[0] == Point(0.0, 0.0, 0)
    assert track.points[-1][:2] == (looks, looks / 2)
    times = [point.when for point in track.points]
    assert times == sorted(set(times))


def test_cpu_time_never_runs_back() -> None:
    """The CPU time of a child that was not waited for is lost."""
    track = Track(0.0)
    track.add(1.0, Usage(cpu=0.9))
    track.add(2.0, Usage(cpu=0.4))
    assert track.cpu_percent() == [(0.0, 90.0), (1.0, 0.0)]


def test_a_load_over_no_time_at_all_is_none() -> None:
    track = Track(0.0)
    track.add(0.001, Usage(cpu=0.01, memory=5))
    assert track.cpu_percent() == [(0.0, 4.0)], "not 1000"
    track.add(1.0, Usage(cpu=0.5, memory=4))
    assert track.points == [Point(0.0, 0.0, 0), Point(1.0, 0.5, 5)]


class NoProcesses:
    """A process table in which nothing lives."""

    def living(self, *roles: Role) -> List[Child]:
        return []


def test_slow_sample_before_training_does_not_delay_the_roles() -> None:
    observer = Observer(cast(ProcessTable, NoProcesses()), cast(Log, None), 100.0)
    assert observer.due == 100.0 + SAMPLE_PERIOD
    with observer.paid():
        began = time.thread_time()
        while time.thread_time() - began < 10 * SAMPLE_PERIOD * MAX_SHARE:
            pass
    assert observer.due > time.monotonic() + 5 * SAMPLE_PERIOD
    now = time.monotonic()
    observer.restart_progress(now)
    assert observer.due == now + SAMPLE_PERIOD
