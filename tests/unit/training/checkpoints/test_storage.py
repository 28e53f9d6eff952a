"""A checkpoint is complete or absent, even if writing it fails."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Iterator

import pytest

from sagemaker_mxnet_training.checkpoints import CheckpointError, catalog, storage

MEMBERS = [("about.json", [b"{}"]), ("weights.params", [b"w" * 300, b"v" * 200])]


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file grow above ``size`` bytes: writes fail from there on, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_at_any_byte_leaves_the_one_before(tmp_path: Path) -> None:
    first = storage.commit(str(tmp_path), 1, MEMBERS)
    size = (tmp_path / first).stat().st_size
    for limit in range(size):
        with file_limit(limit), pytest.raises(OSError) as raised:
            storage.commit(str(tmp_path), 2, MEMBERS)
        assert str(tmp_path) in str(raised.value)
        assert os.listdir(tmp_path) == [first]
    with file_limit(size):
        storage.commit(str(tmp_path), 2, MEMBERS)
    assert catalog.newest_whole(str(tmp_path))[1] == []


def test_members_that_cannot_be_had_leave_the_one_before(tmp_path: Path) -> None:
    first = storage.commit(str(tmp_path), 1, MEMBERS)

    def members() -> Iterator[object]:
        yield MEMBERS[0]
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        storage.commit(str(tmp_path), 2, members())  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == [first]


@pytest.mark.parametrize("member", range(4))
def test_killed_while_it_is_written(tmp_path: Path, member: int) -> None:
    first = storage.commit(str(tmp_path), 1, MEMBERS)
    program = """
        import os, sys
        from sagemaker_mxnet_training.checkpoints import storage
        def members():
            for number in range(4):
                if number == int(sys.argv[2]):
                    os.kill(os.getpid(), 9)
                yield str(number), [bytes(100_000)]
        storage.commit(sys.argv[1], 2, members())
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(member)]
    assert subprocess.run(argv, timeout=60).returncode == -signal.SIGKILL
    entry, damaged = catalog.newest_whole(str(tmp_path))
    assert entry is not None and entry.name == first and damaged == []
    storage.prepare(str(tmp_path))
    assert os.listdir(tmp_path) == [first]


OWNER = """
import os, sys, time
from sagemaker_mxnet_training.checkpoints import storage
storage.lock(sys.argv[1], "process X of job J")
child = os.fork() or time.sleep(60)  # such as a DataLoader's
print("taken", child, flush=True)
time.sleep(60)
"""


def test_directory_in_use_is_rejected_until_its_process_ends(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline().split()[1])
    try:
        with pytest.raises(CheckpointError, match="is in use by process X of job J: wait until"):
            storage.lock(str(tmp_path), "me")
        owner.kill()
        owner.wait()
        storage.lock(str(tmp_path), "me")
        with pytest.raises(CheckpointError, match="already has a Checkpoint in"):
            storage.lock(str(tmp_path), "me")
    finally:
        storage.unlock()
        owner.kill()
        os.kill(child, signal.SIGKILL)
        owner.communicate()


def test_probe_notices_what_cannot_be_written(tmp_path: Path) -> None:
    storage.check_space(str(tmp_path), 1 << 20)
    for limit, size in ((100, 0), (1 << 16, 1 << 20)):
        with file_limit(limit), pytest.raises(OSError, match="File too large"):
            storage.check_space(str(tmp_path), size)
    assert os.listdir(tmp_path) == []
