"""Contents of archives, copies of directories, and the owner of the code directory."""

import gzip
import io
import json
import os
import socket
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.code import fetch, preparation
from sagemaker_mxnet_toolkit.code.fetch import unpack
from sagemaker_mxnet_toolkit.code.preparation import (
    EntryPointKind,
    entry_point_kind,
    make_executable,
)
from sagemaker_mxnet_toolkit.failure import CodeError


def member(name, data=b"", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def link(name, target, kind=tarfile.SYMTYPE):
    return member(name, type=kind, linkname=target)


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def tree(folder):
    """Return all paths below a folder, relative to it, with the bytes of the files."""
    found = {}
    for parent, directories, files in os.walk(folder):
        for name in directories + files:
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, folder)
            if os.path.islink(path):
                found[relative] = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    found[relative] = file.read()
    return found


def code(folder):
    return {name: data for name, data in tree(folder).items() if name != fetch.RECORD}


def test_archive_is_extracted_with_links_and_permissions(tmp_path):
    source = archive(
        tmp_path / "source.tar.gz",
        member(".", type=tarfile.DIRTYPE, mode=0o555),
        member("./train.py", b"print(1)"),
        member("bin/run.sh", b"#!/bin/sh", mode=0o4755),
        link("bin/train.py", "../train.py"),
        link("same.py", "train.py", tarfile.LNKTYPE),
    )
    folder = tmp_path / "code"
    folder.mkdir()
    unpack(source, str(folder), source)
    assert tree(folder) == {
        "train.py": b"print(1)",
        "bin/run.sh": b"#!/bin/sh",
        "bin/train.py": "../train.py",
        "same.py": b"print(1)",
    }
    assert os.stat(folder / "bin/run.sh").st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("filters", [True, False], ids=["filter", "no filter"])
def test_absolute_links_and_special_files_are_skipped(tmp_path, capfd, monkeypatch, filters):
    """Those of a virtual environment, of a data directory, and of leftover FIFOs."""
    if not filters:
        monkeypatch.setattr("sagemaker_mxnet_toolkit.code.fetch._HAS_FILTERS", False)
    source = archive(
        tmp_path / "source.tar.gz",
        member("train.py", b"1"),
        member("venv/lib/x.py", b"x"),
        link("venv/bin/python3", "/usr/bin/python3"),
        link("venv/lib64", "lib"),
        link("near", "venv/lib"),
        link("gone", "nothing", tarfile.LNKTYPE),
        member("../evil.py", b"x"),
        member("pipe", type=tarfile.FIFOTYPE),
        member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("last", type=tarfile.FIFOTYPE),
    )
    fetch.fetch(source, str(tmp_path / "code"))
    assert code(tmp_path / "code") == {
        "train.py": b"1",
        "venv/lib/x.py": b"x",
        "venv/lib64": "lib",
        "near": "venv/lib",
    }
    text = capfd.readouterr().err
    assert text.count("\n") == 1 and f"warning: {source}: skipped special files" in text
    assert (
        "venv/bin/python3 -> /usr/bin/python3, gone -> nothing, ../evil.py, pipe, null and 1 more"
        in text
    )
    assert "'tar -h'" in text


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this tarfile has no filters")
@pytest.mark.parametrize("target", ["../..", "near/../../..", "../secret"])
def test_links_out_of_the_archive_are_skipped(tmp_path, capfd, target):
    (tmp_path / "secret").write_text("secret")
    members = (member("a/b/x.py", b"x"), link("near", "a/b"), link("out", target))
    source = archive(tmp_path / "source.tar.gz", *members)
    fetch.fetch(source, str(tmp_path / "code"))
    assert code(tmp_path / "code") == {"a/b/x.py": b"x", "near": "a/b"}
    assert f"out -> {target}" in capfd.readouterr().err


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "source.tar.gz"
    archive(path, *(member(f"module_{n}.py", os.urandom(700)) for n in range(5)))
    # Compressed once more, for a header that holds no file name.
    return gzip.compress(gzip.decompress(path.read_bytes()))


@given(data=st.data())
def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path_factory, sound, data):
    folder = tmp_path_factory.mktemp("broken")
    if data.draw(st.booleans(), label="truncate"):
        broken = sound[: data.draw(st.integers(0, len(sound) - 1))]
    else:
        # The first ten bytes are gzip's header: its time and system mean nothing to anybody.
        index = data.draw(st.integers(10, len(sound) - 1))
        flipped = sound[index] ^ (1 << data.draw(st.integers(0, 7)))
        broken = sound[:index] + bytes([flipped]) + sound[index + 1 :]
    source = folder / "source.tar.gz"
    source.write_bytes(broken)
    with pytest.raises(CodeError, match=r"source\.tar\.gz"):
        fetch.fetch(str(source), str(folder / "code"))
    assert os.listdir(folder / "code") == []


def test_a_broken_header_inside_a_sound_stream_is_noticed(tmp_path, sound):
    stream = bytearray(gzip.decompress(sound))
    stream[1536 + 3] ^= 0xFF  # in the name of the second member: its checksum is wrong now
    source = tmp_path / "source.tar.gz"
    source.write_bytes(gzip.compress(bytes(stream)))
    with pytest.raises(CodeError, match=r"after member 'module_0.py'.*unreadable data"):
        fetch.fetch(str(source), str(tmp_path / "code"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone.tar.gz", "does not exist"),
        ("train.py", "corrupt or truncated: not a gzip file"),
        ("https://example.com/source.tar.gz", "cannot be fetched"),
    ],
)
def test_what_is_no_source_is_named_with_what_was_expected(tmp_path, name, why):
    (tmp_path / "train.py").write_text("print(1)")
    source = name if "://" in name else str(tmp_path / name)
    with pytest.raises(CodeError) as caught:
        fetch.fetch(source, str(tmp_path / "code"))
    assert source in str(caught.value) and why in str(caught.value)
    assert ".tar.gz" in str(caught.value).partition("expected")[2]


def test_a_directory_is_copied_without_what_is_no_code(tmp_path):
    source = tmp_path / "source"
    for folder in ("package", ".git", "package/__pycache__", "venv"):
        (source / folder).mkdir(parents=True)
    (source / "train.py").write_text("1")
    (source / "package/helper.py").write_text("2")
    (source / ".git/HEAD").write_text("ref")
    (source / "package/__pycache__/helper.pyc").write_text("x")
    (source / "venv/pyvenv.cfg").write_text("home = /usr")
    (source / "inner").symlink_to("package/helper.py")
    (source / "data").symlink_to("../data")
    (tmp_path / "data").mkdir()
    os.mkfifo(source / "pipe")
    fetch.fetch(str(source), str(tmp_path / "code"))
    assert code(tmp_path / "code") == {
        "train.py": b"1",
        "package/helper.py": b"2",
        "inner": "package/helper.py",
        "data": str(tmp_path / "data"),
    }


def test_parent_of_the_code_directory_is_copied_without_it(tmp_path):
    (tmp_path / "train.py").write_text("1")
    target = tmp_path / "runs" / "algo-1" / "code"
    fetch.fetch(str(tmp_path), str(target))
    assert code(target) == {"train.py": b"1"}


def test_a_socket_in_the_source_directory_is_left_out(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text("1")
    monkeypatch.chdir(source)  # a socket's path is bounded to 108 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        fetch.fetch(str(source), str(tmp_path / "code"))
    assert code(tmp_path / "code") == {"train.py": b"1"}


def test_code_of_somebody_else_is_neither_run_nor_touched(tmp_path):
    target = tmp_path / "code"
    target.mkdir()
    (target / "train.py").write_text("mine")
    source = archive(tmp_path / "source.tar.gz", member("other.py", b"sent"))
    with pytest.raises(CodeError, match=r"already contains files .* \(train.py\)") as caught:
        fetch.fetch(source, str(target))
    assert source in str(caught.value) and str(target) in str(caught.value)
    assert tree(target) == {"train.py": b"mine"}


def test_a_second_fetch_replaces_the_first_and_nothing_else(tmp_path):
    target = tmp_path / "code"
    first = archive(tmp_path / "1.tar.gz", member("train.py", b"1"), member("old/helper.py", b"1"))
    second = archive(tmp_path / "2.tar.gz", member("train.py", b"2"), member("new.py", b"2"))
    fetch.fetch(first, str(target))
    (target / "written-by-the-script.txt").write_text("x")
    fetch.fetch(second, str(target))
    assert code(target) == {
        "train.py": b"2",
        "new.py": b"2",
        "written-by-the-script.txt": b"x",
    }
    third = archive(tmp_path / "3.tar.gz", member("written-by-the-script.txt", b"3"))
    with pytest.raises(CodeError, match=r"written-by-the-script.txt"):
        fetch.fetch(third, str(target))
    assert code(target)["written-by-the-script.txt"] == b"x"


def test_a_failed_second_fetch_leaves_the_first(tmp_path):
    target = tmp_path / "code"
    fetch.fetch(archive(tmp_path / "1.tar.gz", member("train.py", b"1")), str(target))
    with pytest.raises(CodeError):
        fetch.fetch(str(tmp_path / "gone.tar.gz"), str(target))
    assert code(target) == {"train.py": b"1"}


def test_what_an_interrupted_fetch_left_is_cleared_away(tmp_path):
    target = tmp_path / "code"
    staging = target / ".sagemaker_mxnet_fetch"
    staging.mkdir(parents=True)
    (staging / "half.py").write_text("x")
    fetch.fetch(archive(tmp_path / "1.tar.gz", member("train.py", b"1")), str(target))
    assert code(target) == {"train.py": b"1"}


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"entries": 7}', "nonsense", "[[["])
def test_a_record_that_cannot_be_read_claims_nothing(tmp_path, record):
    target = tmp_path / "code"
    target.mkdir()
    (target / fetch.RECORD).write_text(record)
    (target / "train.py").write_text("mine")
    with pytest.raises(CodeError, match="already contains files"):
        fetch.fetch(archive(tmp_path / "1.tar.gz", member("train.py", b"1")), str(target))


def test_a_record_claims_nothing_outside_the_code_directory(tmp_path):
    target = tmp_path / "code"
    target.mkdir()
    (tmp_path / "precious").write_text("x")
    entries = ["../precious", str(tmp_path / "precious"), "..", "."]
    (target / fetch.RECORD).write_text(json.dumps({"entries": entries}))
    fetch.fetch(archive(tmp_path / "1.tar.gz", member("train.py", b"1")), str(target))
    assert (tmp_path / "precious").read_text() == "x"


def test_a_fetch_is_needed_where_the_code_is_elsewhere(tmp_path):
    (tmp_path / "same").symlink_to(".")
    assert preparation.fetch_needed("s3://bucket/source.tar.gz", str(tmp_path))
    assert preparation.fetch_needed(str(tmp_path / "other"), str(tmp_path))
    assert not preparation.fetch_needed(str(tmp_path), str(tmp_path))
    assert not preparation.fetch_needed(f"{tmp_path}/", str(tmp_path))
    assert not preparation.fetch_needed(str(tmp_path / "same"), str(tmp_path))


@pytest.mark.parametrize("setup", [False, True])
@pytest.mark.parametrize("name", ["train.py", "train", "train.sh", "bin/run", "a.py.sh"])
def test_entry_points_are_told_apart_as_sagemaker_training_does(tmp_path, setup, name):
    peer = pytest.importorskip("sagemaker_training._entry_point_type")
    if setup:
        (tmp_path / "setup.py").write_text("")
    same = {
        peer.PYTHON_PACKAGE: EntryPointKind.PYTHON_PACKAGE,
        peer.PYTHON_PROGRAM: EntryPointKind.PYTHON_SCRIPT,
        peer.COMMAND: EntryPointKind.COMMAND,
    }
    assert entry_point_kind(str(tmp_path), name) is same[peer.get(str(tmp_path), name)]


def test_a_command_becomes_executable_for_those_who_may_read_it(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o640)
    make_executable(str(tmp_path), "run.sh")
    assert script.stat().st_mode & 0o777 == 0o750
    with pytest.raises(CodeError, match=r"gone.sh cannot be executed"):
        make_executable(str(tmp_path), "gone.sh")


def test_command_with_windows_line_endings_names_the_remedy(tmp_path):
    (tmp_path / "run.sh").write_bytes(b"#!/bin/bash -e\r\necho\r\n")
    with pytest.raises(CodeError, match=r"'/bin/bash -e' with a carriage .*: run 'dos2unix run.sh"):
        make_executable(str(tmp_path), "run.sh")
