"""Several files are replaced as one, whatever interrupts it, at whatever point."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional

import pytest

from sagemaker_mxnet_toolkit.fileset import naming, replacing, settle

NAMES = ("one.json", "two.params", "three.json")

# Replaces the files in argv[1] with the text argv[2]. At its argv[3]th step that touches a path (an
# audit event comes before the step) it does what argv[4] says. A name in argv[5] does not work.
PROGRAM = """
import errno, os, signal, sys
from sagemaker_mxnet_toolkit.fileset import replacing, settle
directory, text, last, action, broken = sys.argv[1:]
NAMES = ("one.json", "two.params", "three.json")
STEPS = ("open", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir")
taken = 0

def replace(text):
    with replacing(directory, NAMES) as new:
        for name in NAMES:
            with open(os.path.join(new, name), "w") as file:
                file.write(text)

def step(event, arguments):
    global taken
    if event in STEPS and any(directory in str(argument) for argument in arguments):
        taken += 1
        if taken == int(last):
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            replace("inner")

def unsupported(*args, **kwargs):
    raise OSError(errno.EPERM, "not on this file system")

if broken:
    setattr(os, broken, unsupported)
sys.addaudithook(step)
settle(directory) if text == "settle" else replace(text)
print(taken)
"""


def run(directory: Path, text: str, last: int = 0, action: str = "kill", broken: str = "") -> int:
    """Run the program: give the steps it took, or minus the signal that ended it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), text, str(last), action, broken],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode or int(done.stdout)


def write(directory: Path, text: str) -> None:
    with replacing(str(directory), NAMES) as new:
        for name in NAMES:
            Path(new, name).write_text(text)


def read(directory: Path) -> List[Optional[str]]:
    """Read as someone does who knows nothing of stages: open, read."""
    return [_content(Path(directory, name)) for name in NAMES]


def _content(path: Path) -> Optional[str]:
    for _ in range(2):  # a reader that is stopped on its way through a link has to look again
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
    return None


def assert_only_plain_files(directory: Path) -> None:
    assert sorted(os.listdir(directory)) == sorted(NAMES)
    assert not any(os.path.islink(directory / name) for name in NAMES)


@pytest.mark.parametrize("broken", ["", "link"])
@pytest.mark.parametrize("old", ["old", None])
def test_a_kill_at_any_step_leaves_the_old_files_or_the_new(tmp_path, old, broken):
    seen: Dict[Optional[str], int] = {}
    for last in range(1, 200):
        directory = tmp_path / str(last)
        directory.mkdir()
        if old:
            write(directory, old)
        status = run(directory, "new", last, broken=broken)
        found = read(directory)
        assert found in ([old] * 3, ["new"] * 3), f"step {last}: {found}"
        seen[found[0]] = seen.get(found[0], 0) + 1
        write(directory, "next")
        assert read(directory) == ["next"] * 3
        assert_only_plain_files(directory)
        if status >= 0:
            break
    else:
        pytest.fail("the program never came to its end")
    assert seen[old] > 5
    assert seen["new"] > 5


def test_a_kill_while_settling_changes_nothing_and_the_next_settles(tmp_path):
    linked = set()
    for last in range(1, 200):
        killed = tmp_path / str(last)
        killed.mkdir()
        write(killed, "old")
        if run(killed, "new", last) >= 0:
            break
        before = read(killed)
        state = (before[0], sum(os.path.islink(killed / name) for name in NAMES))
        if state[1] == 0 or state in linked:
            continue
        linked.add(state)
        for again in range(1, 100):
            twice = tmp_path / f"{last}-{again}"
            shutil.copytree(killed, twice, symlinks=True)
            status = run(twice, "settle", again)
            assert read(twice) == before, f"steps {last}, {again}"
            settle(str(twice))
            assert read(twice) == before
            assert_only_plain_files(twice)
            if status >= 0:
                break
    assert {("old", 1), ("old", 3), ("new", 3), ("new", 1)} <= linked


def test_a_signal_handler_may_replace_the_same_files_at_any_step(tmp_path):
    write(tmp_path, "old")
    total = run(tmp_path, "outer")
    for last in range(1, total + 1):
        run(tmp_path, "outer", last, action="handle")
        assert read(tmp_path) in (["inner"] * 3, ["outer"] * 3), f"step {last}"
        assert_only_plain_files(tmp_path)


def test_a_signal_handler_that_fails_does_not_make_the_outer_call_a_success(tmp_path):
    write(tmp_path, "old")

    def handler(*_):
        with pytest.raises(ZeroDivisionError), replacing(str(tmp_path), NAMES):
            raise ZeroDivisionError

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(FileNotFoundError), replacing(str(tmp_path), NAMES) as new:
            for name in NAMES:
                Path(new, name).write_text("new")
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert read(tmp_path) == ["old"] * 3
    assert_only_plain_files(tmp_path)


def test_without_symbolic_links_files_are_still_replaced_whole(tmp_path):
    write(tmp_path, "old")
    assert run(tmp_path, "new", broken="symlink") > 0
    assert read(tmp_path) == ["new"] * 3
    assert_only_plain_files(tmp_path)


def test_a_block_that_raises_changes_nothing(tmp_path):
    write(tmp_path, "old")
    with pytest.raises(ZeroDivisionError), replacing(str(tmp_path), NAMES) as new:
        Path(new, NAMES[0]).write_text("new")
        raise ZeroDivisionError
    assert read(tmp_path) == ["old"] * 3
    assert_only_plain_files(tmp_path)


def test_a_block_that_forgets_a_file_is_an_error_and_changes_nothing(tmp_path):
    write(tmp_path, "old")
    with pytest.raises(FileNotFoundError, match=NAMES[1]), replacing(str(tmp_path), NAMES) as new:
        Path(new, NAMES[0]).write_text("new")
    assert read(tmp_path) == ["old"] * 3
    assert_only_plain_files(tmp_path)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "vocabulary.txt").write_text("mine")
    write(tmp_path, "new")
    settle(str(tmp_path))
    assert (tmp_path / "vocabulary.txt").read_text() == "mine"


def test_a_users_own_link_is_replaced_and_its_target_kept(tmp_path):
    (tmp_path / "best").write_text("best")
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / NAMES[0]).symlink_to("../best")
    write(directory, "new")
    assert read(directory) == ["new"] * 3
    assert (tmp_path / "best").read_text() == "best"
    assert_only_plain_files(directory)


def test_processes_that_replace_at_once_take_turns(tmp_path):
    program = PROGRAM.replace("replace(text)\nprint", "[replace(text) for _ in range(20)]\nprint")
    assert program != PROGRAM
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), text, "0", "kill", ""])
        for text in ("a", "b", "c")
    ]
    deadline = time.monotonic() + 60
    seen = 0
    while any(child.poll() is None for child in children):
        assert time.monotonic() < deadline
        found = read(tmp_path)
        # Once it is there, no single file is ever missing (see ``_content``) or partial.
        assert all(text in ("a", "b", "c") for text in found) or not seen, found
        seen += all(found)
    assert [child.returncode for child in children] == [0, 0, 0]
    assert seen
    assert len(set(read(tmp_path))) == 1
    assert_only_plain_files(tmp_path)


def test_an_error_of_write_names_its_file(tmp_path):
    write(tmp_path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=NAMES[0]) as caught, replacing(str(tmp_path), NAMES) as n:
            path = os.path.join(n, NAMES[0])
            with naming(path), open(path, "w") as file:
                file.write("x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert read(tmp_path) == ["old"] * 3
    assert_only_plain_files(tmp_path)
