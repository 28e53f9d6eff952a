"""Names, order, retention and what is newest."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Optional, Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_training.checkpoints import catalog, storage

UPLOAD = [catalog.UPLOADING, catalog.UPLOADED]


def commit(directory: Path, step: int) -> str:
    return storage.commit(str(directory), step, [("a", [b"1"])])


def test_checkpoints_are_ordered_by_number_not_step(tmp_path: Path) -> None:
    names = [commit(tmp_path, step) for step in (500, 600, 20)]
    assert [entry.name for entry in catalog.listing(str(tmp_path))] == names
    assert [entry.step for entry in catalog.listing(str(tmp_path))] == [500, 600, 20]


def test_no_directory_has_no_checkpoints(tmp_path: Path) -> None:
    assert catalog.newest_whole(str(tmp_path / "none")) == (None, [])


def test_markers_and_other_files_are_not_checkpoints(tmp_path: Path) -> None:
    name = commit(tmp_path, 1)
    for other in (name + UPLOAD[0], name + UPLOAD[1], name + catalog.IGNORED, "model.zip", "x"):
        (tmp_path / other).touch()
    assert [entry.name for entry in catalog.listing(str(tmp_path))] == [name]


def test_a_damaged_one_is_named_and_the_one_before_it_is_taken(tmp_path: Path) -> None:
    first, second = commit(tmp_path, 1), commit(tmp_path, 2)
    (tmp_path / second).write_bytes((tmp_path / second).read_bytes()[:-30])
    entry, damaged = catalog.newest_whole(str(tmp_path))
    assert entry is not None and entry.name == first
    assert [damage.name for damage in damaged] == [second]


def test_what_is_not_a_file_is_damaged(tmp_path: Path) -> None:
    """To open a FIFO would wait for its other end."""
    os.mkfifo(tmp_path / "checkpoint-000002-step-2.zip")
    (tmp_path / "checkpoint-000001-step-1.zip").mkdir()
    entry, damaged = catalog.newest_whole(str(tmp_path))
    assert entry is None
    assert {damage.reason for damage in damaged} == {"it is not a regular file"}


def test_a_name_is_not_used_again_while_a_marker_has_it(tmp_path: Path) -> None:
    name = commit(tmp_path, 1)
    (tmp_path / (name + catalog.UPLOADED)).touch()
    (tmp_path / name).unlink()
    assert commit(tmp_path, 1) != name


def test_retention_keeps_the_newest_and_what_is_being_uploaded(tmp_path: Path) -> None:
    names = [commit(tmp_path, step) for step in range(5)]
    (tmp_path / (names[0] + catalog.UPLOADING)).touch()
    (tmp_path / (names[1] + catalog.UPLOADING)).touch()
    (tmp_path / (names[1] + catalog.UPLOADED)).touch()
    storage.retain(str(tmp_path), 2)
    left = [entry.name for entry in catalog.listing(str(tmp_path))]
    assert left == [names[0], names[1], names[3], names[4]]
    (tmp_path / (names[3] + catalog.UPLOADED)).touch()
    storage.retain(str(tmp_path), 2)
    left = [entry.name for entry in catalog.listing(str(tmp_path))]
    assert left == [names[0], names[3], names[4]]


def test_what_a_killed_writer_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / f"mine{catalog.IGNORED}"
    kept.touch()
    left = tmp_path / catalog.temporary_name(catalog.next_name([], 7))
    left.touch()
    storage.prepare(str(tmp_path))
    assert kept.exists() and not left.exists()


@pytest.mark.parametrize("keep", [1, 3])
@given(
    numbers=st.sets(st.integers(1, 30)),
    uploading=st.sets(st.integers(1, 30)),
    uploaded=st.sets(st.integers(1, 30)),
    inherited=st.none() | st.integers(1, 30),
)
def test_retention_never_deletes_what_it_must_keep(
    keep: int,
    numbers: Set[int],
    uploading: Set[int],
    uploaded: Set[int],
    inherited: Optional[int],
) -> None:
    def name(number: int) -> str:
        return f"checkpoint-{number:06d}-step-1.zip"

    names = {name(n) for n in numbers}
    names |= {name(n) + catalog.UPLOADING for n in uploading}
    names |= {name(n) + catalog.UPLOADED for n in uploaded}
    gone = set(catalog.expired(names, keep, inherited and name(inherited)))
    newest = {name(n) for n in sorted(numbers)[-keep:]}
    busy = {name(n) for n in numbers & (uploading - uploaded)}
    marked = sorted(numbers & uploaded)[-1:]
    in_s3 = {name(n) for n in marked}
    in_s3 |= {name(n) for n in numbers & {inherited} if n > max(marked, default=0)}
    assert gone == {name(n) for n in numbers} - newest - busy - in_s3


def imported(code: str) -> Set[str]:
    """Return the modules that are imported when some code has run."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    return set(subprocess.check_output(command, text=True).split())


def test_catalog_imports_neither_mxnet_nor_numpy() -> None:
    modules = imported("from sagemaker_mxnet_training.checkpoints import catalog")
    assert not {"mxnet", "numpy", "sagemaker_mxnet_training.checkpoints.checkpoint"} & modules


@pytest.mark.parametrize("role", ["bootstrap", "kvstore_process"])
def test_role_imports_what_it_needs_of_checkpoints(role: str) -> None:
    modules = imported(f"import sagemaker_mxnet_training.roles.{role}")
    package = "sagemaker_mxnet_training.checkpoints"
    expected = {package, f"{package}.server_state"} if role == "kvstore_process" else set()
    assert {name for name in modules if name.startswith(package)} == expected
