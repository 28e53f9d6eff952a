"""Files are replaced atomically, even if interrupted, and in the given order."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

import pytest

from sagemaker_mxnet_toolkit.atomic_files import naming, remove_leftovers, replacing, write_text

NAMES = ("one.params", "two.json", "three.json")

# Replaces the files in argv[1] with the text argv[2]. At its argv[3]th step that touches a path (an
# audit event comes before the step) it kills itself, or replaces them in between.
PROGRAM = """
import os, signal, sys
from sagemaker_mxnet_toolkit.atomic_files import replacing
directory, text, last, action = sys.argv[1:]
PATHS = [os.path.join(directory, name) for name in ("one.params", "two.json", "three.json")]
taken = 0

def replace(text):
    with replacing(*PATHS) as temporary:
        for path in temporary:
            with open(path, "w") as file:
                file.write(text)

def step(event, arguments):
    global taken
    if event.startswith(("open", "os.")) and any(directory in str(each) for each in arguments):
        taken += 1
        if taken == int(last):
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            replace("inner")

sys.addaudithook(step)
replace(text)
print(taken)
"""


def run(directory: Path, text: str, last: int = 0, action: str = "kill") -> int:
    """Run the program; return the steps it took, or minus the signal that ended it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), text, str(last), action],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode or int(done.stdout)


def write(directory: Path, text: str) -> None:
    with replacing(*(str(directory / name) for name in NAMES)) as temporary:
        for path in temporary:
            Path(path).write_text(text)


def read(directory: Path) -> List[Optional[str]]:
    paths = [directory / name for name in NAMES]
    return [path.read_text() if path.exists() else None for path in paths]


@pytest.mark.parametrize("old", ["old", None])
def test_a_kill_leaves_whole_files_in_order(tmp_path: Path, old: Optional[str]) -> None:
    seen = set()
    for last in range(1, 100):
        directory = tmp_path / str(last)
        directory.mkdir()
        if old:
            write(directory, old)
        status = run(directory, "new", last)
        found = read(directory)
        # Those that are new are the first ones.
        replaced = found.count("new")
        assert found == ["new"] * replaced + [old] * (3 - replaced), f"step {last}"
        seen.add(replaced)
        write(directory, "next")
        assert read(directory) == ["next"] * 3
        assert sorted(os.listdir(directory)) == sorted(NAMES)
        if status >= 0:
            break
    else:
        pytest.fail("the program never came to its end")
    assert seen == {0, 1, 2, 3}


def test_a_signal_handler_may_replace_the_same_files(tmp_path: Path) -> None:
    write(tmp_path, "old")
    for last in range(1, run(tmp_path, "outer") + 1):
        run(tmp_path, "outer", last, action="handle")
        assert set(read(tmp_path)) <= {"inner", "outer"}, f"step {last}"
        assert sorted(os.listdir(tmp_path)) == sorted(NAMES)


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with pytest.raises(ZeroDivisionError), replacing(str(tmp_path / NAMES[0])) as (temporary,):
        Path(temporary).write_text("new")
        raise ZeroDivisionError
    assert read(tmp_path) == ["old"] * 3
    assert sorted(os.listdir(tmp_path)) == sorted(NAMES)


def test_a_missing_file_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with pytest.raises(FileNotFoundError, match=NAMES[1]):
        with replacing(str(tmp_path / NAMES[0]), str(tmp_path / NAMES[1])) as (first, _):
            Path(first).write_text("new")
    assert read(tmp_path) == ["old"] * 3


def test_a_users_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("best")
    (tmp_path / "latest").symlink_to("best")
    write_text(str(tmp_path / "latest"), "new")
    assert (tmp_path / "best").read_text() == "best"
    assert not (tmp_path / "latest").is_symlink()


def test_files_of_a_running_process_are_not_removed(tmp_path: Path) -> None:
    with replacing(str(tmp_path / "name")) as (outer,):
        Path(outer).write_text("outer")
        write_text(str(tmp_path / "name"), "inner")
    assert (tmp_path / "name").read_text() == "outer"


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    assert run(tmp_path, "new", 6) == -signal.SIGKILL
    assert os.listdir(tmp_path)
    (tmp_path / "mine.partial").write_text("mine")
    remove_leftovers(str(tmp_path))
    assert os.listdir(tmp_path) == ["mine.partial"]


def test_an_error_of_write_names_its_file(tmp_path: Path) -> None:
    path = str(tmp_path / "name")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="name") as caught, naming(path), open(path, "w") as file:
            file.write("x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
