"""CPUs, memory and kills of a container, from control groups."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from sagemaker_mxnet_toolkit import container


class Tree:
    """A fake /sys/fs/cgroup and /proc/self/cgroup."""

    def __init__(self, directory):
        self.root = directory / "cgroup"
        self.root.mkdir()
        self._membership = directory / "membership"

    def member(self, *lines):
        self._membership.write_text("".join(f"{line}\n" for line in lines))

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")

    @property
    def places(self):
        return str(self.root), str(self._membership)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def everything(tree):
    return (
        container.cpu_quota(*tree.places),
        container.memory_limit(*tree.places),
        container.memory_usage(*tree.places),
        container.oom_kills(*tree.places),
    )


def test_version_2_in_a_container(tree):
    tree.member("0::/")
    tree.write("cpu.max", "150000 100000")
    tree.write("memory.max", "1073741824")
    tree.write("memory.current", "4096")
    tree.write("memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0")
    assert everything(tree) == (1.5, 2**30, 4096, 3)


def test_version_2_without_limits(tree):
    tree.member("0::/")
    tree.write("cpu.max", "max 100000")
    tree.write("memory.max", "max")
    tree.write("memory.events", "oom_kill 0")
    assert everything(tree) == (None, None, None, 0)


def test_what_was_used_up_is_the_limit_or_the_machines_memory(tree):
    tree.member("0::/")
    tree.write("memory.max", "max")
    assert container.exhausted_memory(*tree.places) == "the machine's memory was used up"
    tree.write("memory.max", str(300 * 2**20))
    limit = "the container's limit of 300 MiB was reached"
    assert container.exhausted_memory(*tree.places) == limit


def test_limit_on_processes_counts_once_it_was_reached(tree):
    tree.member("8:pids:/docker/one", "0::/")
    assert container.process_limit_reached(*tree.places) is None
    tree.write("pids/pids.max", "20")
    tree.write("pids/pids.events", "max 0")
    assert container.process_limit_reached(*tree.places) is None
    tree.write("pids/pids.events", "max 3")
    assert container.process_limit_reached(*tree.places) == 20


def test_version_2_on_a_host_obeys_the_tightest_limit_above(tree):
    tree.member("0::/a/b")
    tree.write("a/cpu.max", "100000 100000")
    tree.write("a/memory.max", "1000")
    tree.write("a/memory.current", "900")
    tree.write("a/b/cpu.max", "400000 100000")
    tree.write("a/b/memory.max", "max")
    tree.write("a/b/memory.current", "800")
    tree.write("a/b/memory.events", "oom_kill 1")
    tree.write("a/memory.events", "oom_kill 9")
    assert everything(tree) == (1.0, 1000, 800, 1)


def test_version_1_in_a_container_whose_path_is_the_hosts(tree):
    tree.member("4:memory:/docker/abc", "3:cpu,cpuacct:/docker/abc", "0::/docker/abc")
    tree.write("cpu,cpuacct/cpu.cfs_quota_us", "50000")
    tree.write("cpu,cpuacct/cpu.cfs_period_us", "100000")
    tree.write("memory/memory.limit_in_bytes", "536870912")
    tree.write("memory/memory.usage_in_bytes", "4096")
    tree.write("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2")
    # A container inside of this one is none of its own.
    tree.write("memory/docker/memory.limit_in_bytes", "1")
    assert everything(tree) == (0.5, 2**29, 4096, 2)


def test_version_1_without_limits(tree):
    tree.member("4:memory:/", "3:cpu:/", "0::/")
    tree.write("cpu/cpu.cfs_quota_us", "-1")
    tree.write("cpu/cpu.cfs_period_us", "100000")
    tree.write("memory/memory.limit_in_bytes", "9223372036854771712")
    tree.write("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0")
    assert everything(tree) == (None, None, None, None)


def test_version_1_for_memory_beside_version_2_for_cpu(tree):
    tree.member("4:memory:/", "0::/")
    tree.write("memory/memory.limit_in_bytes", "4096")
    tree.write("cpu.max", "200000 100000")
    assert everything(tree)[:2] == (2.0, 4096)


def test_a_path_above_its_namespace_stays_below_the_mount(tree):
    tree.member("0::/../../elsewhere")
    tree.write("memory.max", "4096")
    assert container.memory_limit(*tree.places) == 4096


def test_available_memory_is_read_where_the_limit_is(tree):
    tree.member("0::/job")
    tree.write("memory.stat", "inactive_file 999999")
    tree.write("job/memory.max", "1000")
    tree.write("job/memory.current", "900")
    tree.write("job/memory.stat", "anon 1\ninactive_file 300\nactive_file 7")
    assert container.memory_available(*tree.places) == 400


def test_available_memory_is_the_least_of_all_limits(tree):
    tree.member("0::/a/b")
    for group, usage in (("a", 950), ("a/b", 100)):
        tree.write(f"{group}/memory.max", "1000")
        tree.write(f"{group}/memory.current", usage)
    assert container.memory_available(*tree.places) == 50


def test_available_memory_counts_page_cache_of_groups_below(tree):
    """Version 1 counts usage with the groups below, and ``inactive_file`` without them."""
    tree.member("4:memory:/docker/abc")
    tree.write("memory/memory.limit_in_bytes", "1000")
    tree.write("memory/memory.usage_in_bytes", "900")
    tree.write("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 300")
    assert container.memory_available(*tree.places) == 400


def test_available_memory_without_a_limit_is_unknown(tree):
    tree.member("0::/")
    tree.write("memory.max", "max")
    tree.write("memory.current", "900")
    assert container.memory_available(*tree.places) is None


@pytest.mark.parametrize("text", ["", "x", "-5", "1 2 3", "9" * 30, "٣", "0"])
def test_nonsense_is_no_limit(tree, text):
    tree.member("nonsense", "", "0::/")
    tree.write("cpu.max", f"{text} {text}")
    tree.write("memory.max", text)
    tree.write("memory.events", f"oom_kill {text}")
    found = everything(tree)
    assert found[0] is None
    assert found[1] in (None, 0)
    assert found[3] in (None, 0)


def test_no_control_groups_at_all(tmp_path):
    missing = str(tmp_path / "gone")
    assert container.cpu_quota(missing, missing) is None
    assert container.oom_kills(missing, missing) is None


def test_this_process_has_answers_of_the_right_kind():
    for answer in (container.memory_limit(), container.memory_usage(), container.oom_kills()):
        assert answer is None or (isinstance(answer, int) and answer >= 0)


GREEDY = """
import sys
open(sys.argv[1], "w").write("0")
data = bytearray()
while True:
    data += b"x" * 2**20
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a control group")
def test_a_process_killed_for_its_memory_is_counted(tmp_path):
    root = pathlib.Path(container.ROOT)
    version_1 = (root / "memory" / "memory.limit_in_bytes").exists()
    parent = root / "memory" if version_1 else root
    group = parent / f"sagemaker-mxnet-training-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if version_1 else "memory.max")
        limit.write_text(str(2**26))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"memory control groups cannot be made here: {error}")
    membership = tmp_path / "membership"
    membership.write_text(f"{'4:memory' if version_1 else '0:'}:/{group.name}\n")
    places = (str(root), str(membership))
    try:
        # Swap would only make it last longer.
        if version_1 and (group / "memory.swappiness").exists():
            (group / "memory.swappiness").write_text("0")
        elif (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
        assert container.memory_limit(*places) == 2**26
        assert container.oom_kills(*places) == 0
        arguments = [sys.executable, "-c", GREEDY, str(group / "cgroup.procs")]
        done = subprocess.run(arguments, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert container.oom_kills(*places) == 1
        assert container.memory_usage(*places) is not None
    finally:
        group.rmdir()
