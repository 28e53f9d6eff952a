"""The file format: one checkpoint is one zip file, stored without compression.

One file is the only unit that both a rename on disk and an object in S3 make atomic. Every member
can be read with common tools; ``weights.params`` is MXNet's own format. The last member,
``members.json``, lists all others with size and SHA-256: a flipped bit in the zip's directory can
make members disappear without an error, so the zip's own CRC-32 is not enough.
"""

import hashlib
import json
import os
import zipfile
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Tuple

from sagemaker_mxnet_training.checkpoints.errors import DamagedError

FORMAT = 1
"""Version of the format. A file of another version counts as damaged."""

MANIFEST = "members.json"
CHUNK = 1 << 20
"""Bytes that are read or written at a time."""

_MANIFEST_LIMIT = 16 << 20
_TRUSTED = 0o600 << 16  # permissions of an extracted member

Member = Tuple[str, Iterable[bytes]]


def write(file: BinaryIO, members: Iterable[Member]) -> None:
    """Write a checkpoint.

    Args:
        file: an empty seekable file, open for writing.
        members: name and content of each member, consumed one after the other.

    Raises:
        OSError: when the file cannot be written.
    """
    listed: List[Dict[str, Any]] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, chunks in members:
            digest, size = hashlib.sha256(), 0
            with archive.open(_info(name), "w", force_zip64=True) as member:
                for chunk in chunks:
                    member.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            listed.append({"name": name, "size": size, "sha256": digest.hexdigest()})
        archive.writestr(_info(MANIFEST), json.dumps({"format": FORMAT, "members": listed}))


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = _TRUSTED
    return info


class Archive:
    """A checkpoint file, open for reading. It is a context manager.

    Args:
        path: the file.

    Raises:
        DamagedError: when the file is not a checkpoint, is incomplete or cannot be read. Only
            ``verify`` and complete reads check the members' content.
    """

    def __init__(self, path: str) -> None:
        self.name = os.path.basename(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises a dozen types for damaged files
            raise _damaged(error) from error
        try:
            self._members = self._check_list()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    @property
    def names(self) -> Tuple[str, ...]:
        """Names of the members, in the order they were written."""
        return tuple(self._members)

    def size(self, name: str) -> int:
        """Return a member's size in bytes."""
        return self._members[name][0]

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a member's content.

        Raises:
            DamagedError: when it is not what was written, at the latest after the last chunk.
        """
        size, expected = self._members[name]
        digest, left = hashlib.sha256(), size
        try:
            with self._zip.open(name) as member:
                while left:
                    chunk = member.read(min(left, CHUNK))
                    if not chunk:
                        raise DamagedError(f"its member {name} is cut short")
                    left -= len(chunk)
                    digest.update(chunk)
                    yield chunk
        except (DamagedError, GeneratorExit):
            raise
        except Exception as error:
            raise _damaged(error) from error
        if digest.hexdigest() != expected:
            raise DamagedError(f"its member {name} has another SHA-256 than when it was written")

    def read(self, name: str) -> bytes:
        """Return a member's content.

        Raises:
            DamagedError: as ``chunks`` does.
        """
        return b"".join(self.chunks(name))

    def verify(self) -> None:
        """Read all members.

        Raises:
            DamagedError: when one of them is not what was written.
        """
        for name in self._members:
            for _ in self.chunks(name):
                pass

    def _check_list(self) -> Dict[str, Tuple[int, str]]:
        infos = {info.filename: info for info in self._zip.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise DamagedError("a member of it is compressed, which no checkpoint's is")
        try:
            with self._zip.open(MANIFEST) as file:
                content = json.loads(file.read(_MANIFEST_LIMIT))
            version = content["format"]
            members = {
                str(each["name"]): (int(each["size"]), str(each["sha256"]))
                for each in content["members"]
            }
        except Exception as error:
            raise _damaged(error) from error
        if version != FORMAT:
            raise DamagedError(f"it has format {version!r}, expected {FORMAT}")
        sizes = {name: info.file_size for name, info in infos.items() if name != MANIFEST}
        if sizes != {name: size for name, (size, _) in members.items()}:
            raise DamagedError("its members are not those that were written")
        return members


def _damaged(error: Exception) -> DamagedError:
    if isinstance(error, KeyError):
        return DamagedError(f"it has no list of members ({error})")
    text = str(error) or type(error).__name__
    return DamagedError(f"it cannot be read: {text}")
