"""Fixtures of these tests: the expected end of each host, and its duration."""

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional

import pytest

from tests.support.jobs import Cluster, Ended, eventually

SECONDS = "seconds from the fault to the end of the last host"

PLACES = [
    pytest.param(1, 1, id="1-host"),
    pytest.param(2, 1, id="2-hosts-on-first"),
    pytest.param(2, 2, id="2-hosts-on-other"),
    pytest.param(3, 1, id="3-hosts-on-first"),
    pytest.param(3, 3, id="3-hosts-on-other"),
]
"""Number of hosts, and the faulty one."""

everywhere = pytest.mark.parametrize(("hosts", "culprit"), PLACES)


def needs_root(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that makes network namespaces, cgroups or mounts."""
    skip = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, cgroups, mounts")
    return pytest.mark.root(skip(test))


needs_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="needs notes on exceptions")


class Verdicts:
    """Checks how all hosts of a job ended, and notes how long that took."""

    def __init__(self, test: pytest.Item) -> None:
        self._test = test

    def failed(
        self, cluster: Cluster, since: float, cause: str, status: Optional[Dict[int, int]] = None
    ) -> List[Ended]:
        """Every host fails with the same cause; one that matches; others exit with status 1."""
        ends = cluster.ended()
        self.note(ends, since)
        causes = {end.cause for end in ends}
        assert len(causes) == 1, f"one cause for all, not {causes}"
        assert re.search(cause, causes.pop()), f"{ends[0].cause!r} does not match {cause!r}"
        for number, end in enumerate(ends, 1):
            assert end.status == (status or {}).get(number, 1), end.output
            assert not end.success
            assert "the job FAILED" in end.output
        return ends

    def succeeded(self, cluster: Cluster) -> List[Ended]:
        """Every host succeeds."""
        ends = cluster.ended()
        for end in ends:
            assert (end.status, end.success, end.failure) == (0, True, None), end.output
        return ends

    def stopped(self, cluster: Cluster, since: float, status: Dict[int, int]) -> List[Ended]:
        """Every host stops: neither success nor failure."""
        ends = cluster.ended()
        self.note(ends, since)
        for number, end in enumerate(ends, 1):
            assert (end.status, end.success, end.failure) == (status[number], False, None), (
                end.output
            )
            assert "the job was STOPPED" in end.output
        return ends

    def note(self, ends: List[Ended], since: float) -> None:
        """Note how long an ending took, for the table at the end."""
        seconds = max(end.at for end in ends) - since
        self._test.user_properties.append((SECONDS, seconds))


def _memory_controller() -> Optional[Path]:
    """Return where control groups with a memory limit can be made: version 1, or version 2."""
    version_1, version_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if os.geteuid() != 0:
        return None
    if (version_1 / "memory.limit_in_bytes").exists():
        return version_1
    with contextlib.suppress(OSError):
        if "memory" in (version_2 / "cgroup.controllers").read_text().split():
            # Refused where the group at the root of a container has processes.
            (version_2 / "cgroup.subtree_control").write_text("+memory")
            return version_2
    return None


CGROUP = _memory_controller() or Path("/nowhere")

needs_memory_limit = pytest.mark.skipif(
    not CGROUP.exists(), reason="needs root and the memory controller of cgroup version 1 or 2"
)


@pytest.fixture
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """Make a control group with a memory limit in MiB; return its directory. As a container is."""
    group = CGROUP / f"smx-test-{os.getpid()}-{tmp_path.name}"

    def make(megabytes: int) -> str:
        group.mkdir()
        limit = str(megabytes * 2**20)
        if (group / "memory.max").exists():
            (group / "memory.max").write_text(limit)
            with contextlib.suppress(OSError):  # a kernel without swap has no such file
                (group / "memory.swap.max").write_text("0")
        else:
            (group / "memory.limit_in_bytes").write_text(limit)
        return str(group)

    yield make
    eventually(lambda: not (group / "cgroup.procs").read_text(), "everybody leaving the group")
    group.rmdir()


@pytest.fixture
def verdicts(request: pytest.FixtureRequest) -> Verdicts:
    return Verdicts(request.node)


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Print how long each ending took: figures for docs/endings.md, not verdicts."""
    if hasattr(terminalreporter.config, "workerinput"):
        return  # one of pytest-xdist's, whose reports the process that started it has too
    figures: Dict[str, List[float]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            cell = report.nodeid.split("endings/test_")[-1].split("[")[0]
            for name, value in report.user_properties:
                if name == SECONDS and report.when == "call":
                    figures.setdefault(cell.replace(".py::test_", ": "), []).append(value)
    if not figures:
        return
    terminalreporter.section(f"{SECONDS} (min max, runs)")
    for cell, seconds in sorted(figures.items()):
        low, high = min(seconds), max(seconds)
        terminalreporter.write_line(f"{low:6.2f} {high:6.2f} {len(seconds):3d}  {cell}")
    path = os.environ.get("ENDINGS_FIGURES")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
