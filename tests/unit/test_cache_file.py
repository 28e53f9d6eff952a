"""The file of the import cache: whole or not there, and trusted as far as its owner is."""

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.compatibility import cache_file
from sagemaker_mxnet_toolkit.compatibility.cache_file import Place, name_of, read, write

KEY = b"what it was made for"
CONTENT = b"functions" * 10
ME = os.geteuid()
root = pytest.mark.skipif(ME != 0, reason="only root gives files to others")


@pytest.fixture
def place(tmp_path):
    """Give the user's own cache, which does not exist yet."""
    return Place(str(tmp_path / "a" / "cache"), frozenset((ME,)), private=True)


@pytest.fixture
def file(place):
    """Give a cache that was written."""
    write(KEY, CONTENT, [place])
    return pathlib.Path(place.directory) / name_of(KEY)


def test_what_was_written_is_read(place, file):
    assert read(KEY, [place]) == CONTENT
    assert file.stat().st_mode & 0o777 == 0o644
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(file.parent) == [file.name]


def test_nothing_is_read_before(place):
    assert read(KEY, [place]) is None


def test_a_key_reads_its_own_content_alone(place, file):
    assert read(KEY + b"!", [place]) is None
    file.rename(file.with_name(name_of(KEY + b"!")))
    assert read(KEY + b"!", [place]) is None


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_none(place, file, data):
    whole = KEY + b"\n" + cache_file.source_hash(CONTENT) + CONTENT
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)), "length")])
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3), "flipped"):
        if position < len(damaged):
            damaged[position] ^= 1
    damaged += data.draw(st.binary(max_size=8), "more")
    file.write_bytes(damaged)
    assert read(KEY, [place]) == (CONTENT if damaged == whole else None)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", KEY, KEY + b"\n", KEY + b"\n" + b"x" * 500])
def test_what_does_not_fit_is_written_anew(place, file, data):
    file.write_bytes(data)
    assert read(KEY, [place]) is None
    write(KEY, CONTENT, [place])
    assert read(KEY, [place]) == CONTENT
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_not_trusted(place, file, mode):
    file.chmod(mode)
    assert read(KEY, [place]) is None


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_the_users_cache_is_the_users_alone(place, file, mode):
    file.parent.chmod(mode)
    assert read(KEY, [place]) is None
    file.unlink()
    write(KEY, CONTENT, [place])
    assert os.listdir(file.parent) == []


@root
def test_another_users_file_is_not_trusted_and_is_replaced(place, file):
    os.chown(file, 12345, 12345)
    assert read(KEY, [place]) is None
    write(KEY, CONTENT, [place])
    assert (read(KEY, [place]), file.stat().st_uid) == (CONTENT, ME)


@root
def test_another_users_directory_is_left_alone(place, file):
    os.chown(file.parent, 12345, 12345)
    assert read(KEY, [place]) is None
    file.unlink()
    write(KEY, CONTENT, [place])
    assert os.listdir(file.parent) == []


def test_links_are_not_followed(place, file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert read(KEY, [place]) is None
    file.unlink()
    file.parent.rename(tmp_path / "directory")
    file.parent.symlink_to(tmp_path / "directory")
    elsewhere.rename(tmp_path / "directory" / file.name)
    assert read(KEY, [place]) is None


def test_a_fifo_is_not_waited_for(place, file):
    file.unlink()
    os.mkfifo(file, 0o644)
    assert read(KEY, [place]) is None


def beside(directory):
    return Place(str(directory), frozenset((0, ME)), private=False)


def test_a_directory_that_all_can_write_is_never_written(tmp_path, place):
    common = tmp_path / "common"
    common.mkdir()
    common.chmod(0o777)
    write(KEY, CONTENT, [beside(common), place])
    assert os.listdir(common) == []
    assert read(KEY, [place]) == CONTENT


def test_the_next_place_takes_what_the_first_cannot(tmp_path, place):
    (tmp_path / "file").write_text("no directory can be made under this")
    write(KEY, CONTENT, [beside(tmp_path / "file" / "cache"), place])
    assert read(KEY, [beside(tmp_path / "file" / "cache"), place]) == CONTENT


def test_no_place_is_no_error(tmp_path):
    (tmp_path / "file").write_text("no directory can be made under this")
    write(KEY, CONTENT, [beside(tmp_path / "file" / "cache")])
    write(KEY, CONTENT, [])
    assert read(KEY, []) is None


def test_directories_of_packages_stay_as_they_are_where_python_is_told_so(
    tmp_path, place, monkeypatch
):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(KEY, CONTENT, [beside(tmp_path / "package"), place])
    assert not (tmp_path / "package").exists()
    assert read(KEY, [place]) == CONTENT


def test_a_file_that_fits_is_not_written_again(place, file):
    before = file.stat().st_ino
    write(KEY, CONTENT, [place])
    assert file.stat().st_ino == before


def usual(**variables):
    """Return the directories of the usual places in a process with these variables."""
    code = (
        "from sagemaker_mxnet_toolkit.compatibility import cache_file\n"
        "print(*[place.directory for place in cache_file.usual_places()])"
    )
    environment = {**os.environ, **variables}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split()


def test_the_usual_places(tmp_path):
    package = str(pathlib.Path(cache_file.__file__).parent / "__pycache__")
    home, cache = str(tmp_path), str(tmp_path / "xdg")
    own = str(tmp_path / ".cache" / "sagemaker-mxnet-training")
    assert usual(HOME=home, XDG_CACHE_HOME="") == [package, own]
    assert usual(HOME=home, XDG_CACHE_HOME="relative") == [package, own]
    assert usual(HOME=home, XDG_CACHE_HOME=cache) == [package, f"{cache}/sagemaker-mxnet-training"]
    assert usual(HOME="relative") == [package]
    assert usual(HOME=str(tmp_path / "none")) == [package]
    prefix = str(tmp_path / "prefix")
    assert usual(HOME=home, PYTHONPYCACHEPREFIX=prefix)[0].startswith(prefix + "/")


@root
def test_the_home_of_another_user_is_no_place(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    assert len(usual(HOME=str(tmp_path))) == 1


@pytest.mark.parametrize("value, on", [("0", False), (" 0 ", False), ("1", True), ("", True)])
def test_the_variable_switches_it_off(monkeypatch, value, on):
    monkeypatch.setenv(cache_file.VARIABLE, value)
    assert cache_file.enabled() is on
