"""The file of the import cache is complete or ignored."""

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.compatibility import import_cache
from sagemaker_mxnet_toolkit.compatibility.import_cache import path_for, read, write

KEY = b"what it was made for"
CONTENT = b"functions" * 10


@pytest.fixture
def directory(tmp_path):
    """Return a directory that does not exist yet."""
    return str(tmp_path / "a" / "cache")


@pytest.fixture
def file(directory):
    """Return the path of a cache that was written."""
    write(KEY, CONTENT, [directory])
    return pathlib.Path(path_for(KEY, directory))


def test_what_was_written_is_read(directory, file):
    assert read(KEY, [directory]) == CONTENT
    assert os.listdir(directory) == [file.name]


def test_nothing_is_read_before(directory):
    assert read(KEY, [directory]) is None


def test_a_key_reads_its_own_content_alone(directory, file):
    assert read(KEY + b"!", [directory]) is None
    file.rename(path_for(KEY + b"!", directory))
    assert read(KEY + b"!", [directory]) is None


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_file_is_ignored(directory, file, data):
    whole = KEY + b"\n" + import_cache.source_hash(CONTENT) + CONTENT
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)), "length")])
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3), "flipped"):
        if position < len(damaged):
            damaged[position] ^= 1
    damaged += data.draw(st.binary(max_size=8), "more")
    file.write_bytes(damaged)
    assert read(KEY, [directory]) == (CONTENT if damaged == whole else None)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", KEY, KEY + b"\n", KEY + b"\n" + b"x" * 500])
def test_a_file_that_does_not_fit_is_replaced(directory, file, data):
    file.write_bytes(data)
    assert read(KEY, [directory]) is None
    write(KEY, CONTENT, [directory])
    assert read(KEY, [directory]) == CONTENT
    assert os.listdir(directory) == [file.name]


def test_the_second_directory_is_used_where_the_first_fails(tmp_path, directory):
    (tmp_path / "file").write_text("no directory can be made under this")
    directories = [str(tmp_path / "file" / "cache"), directory]
    write(KEY, CONTENT, directories)
    assert os.listdir(directory)
    assert read(KEY, directories) == CONTENT


def test_no_directory_is_no_error(tmp_path):
    (tmp_path / "file").write_text("no directory can be made under this")
    write(KEY, CONTENT, [str(tmp_path / "file" / "cache")])
    write(KEY, CONTENT, [])
    assert read(KEY, []) is None


def test_dont_write_bytecode_leaves_the_package_alone(tmp_path, directory, monkeypatch):
    package = str(tmp_path / "package")
    monkeypatch.setattr(import_cache, "package_directory", lambda: package)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(KEY, CONTENT, [package, directory])
    assert not os.path.exists(package)
    assert read(KEY, [directory]) == CONTENT


def directories(**variables):
    """Return the default directories in a process with these variables."""
    code = (
        "from sagemaker_mxnet_toolkit.compatibility import import_cache\n"
        "print(*import_cache.default_directories())"
    )
    environment = {**os.environ, **variables}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split()


def test_default_directories(tmp_path):
    package = str(pathlib.Path(import_cache.__file__).parent / "__pycache__")
    home, cache = str(tmp_path), str(tmp_path / "xdg")
    own = str(tmp_path / ".cache" / "sagemaker-mxnet-training")
    assert directories(HOME=home, XDG_CACHE_HOME="") == [package, own]
    assert directories(HOME=home, XDG_CACHE_HOME="relative") == [package, own]
    assert directories(XDG_CACHE_HOME=cache) == [package, f"{cache}/sagemaker-mxnet-training"]
    assert directories(HOME="relative", XDG_CACHE_HOME="") == [package]
    prefix = str(tmp_path / "prefix")
    assert directories(HOME=home, PYTHONPYCACHEPREFIX=prefix)[0].startswith(prefix + "/")


@pytest.mark.parametrize("value, on", [("0", False), (" 0 ", False), ("1", True), ("", True)])
def test_the_variable_switches_it_off(monkeypatch, value, on):
    monkeypatch.setenv("SAGEMAKER_MXNET_IMPORT_CACHE", value)
    assert import_cache.enabled() is on
