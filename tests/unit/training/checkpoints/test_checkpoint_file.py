"""The file format: damage is noticed, or harmless."""

import random
import zipfile
from pathlib import Path
from typing import Dict

import pytest

from sagemaker_mxnet_training.checkpoints import catalog, checkpoint_file
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointFile, DamagedError

MEMBERS: Dict[str, bytes] = {
    "about.json": b'{"step": 3}',
    "server-0.states": bytes(range(256)),
    "weights.params": bytes(random.Random(1).choices(range(256), k=700)),
    "empty": b"",
}


def written(path: Path) -> Path:
    with open(path, "wb") as file:
        checkpoint_file.write(
            file, ((name, [content[:9], content[9:]]) for name, content in MEMBERS.items())
        )
    return path


def content(path: Path) -> Dict[str, bytes]:
    with CheckpointFile(str(path)) as opened:
        return {name: opened.read(name) for name in opened.names}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert content(written(tmp_path / "c.zip")) == MEMBERS


def test_common_tools_read_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(written(tmp_path / "c.zip")) as file:
        assert file.read("about.json") == MEMBERS["about.json"]


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "c.zip")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert catalog.verify(str(path)) is not None, length


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = written(tmp_path / "c.zip")
    whole = path.read_bytes()
    bits = random.Random(2).sample(range(8 * len(whole)), 1000)
    noticed = 0
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert content(path) == MEMBERS, bit
        except DamagedError:
            noticed += 1
    assert noticed > 700


@pytest.mark.parametrize("garbage", [b"", b"PK", b"\0" * 100, b"no zip at all"])
def test_garbage_is_noticed(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "c.zip"
    path.write_bytes(garbage)
    assert catalog.verify(str(path)) is not None


def test_a_missing_file_is_noticed(tmp_path: Path) -> None:
    assert catalog.verify(str(tmp_path / "c.zip")) is not None


def test_unlisted_member_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "c.zip")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("extra", b"1")
    assert catalog.verify(str(path)) == "its members do not match its list of members"


def test_compressed_member_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", b"\0" * 1_000_000)
    assert "compressed" in str(catalog.verify(str(path)))


def test_another_version_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(checkpoint_file.MANIFEST, '{"format": 2, "members": []}')
    assert catalog.verify(str(path)) == "it has format 2, expected 1"
