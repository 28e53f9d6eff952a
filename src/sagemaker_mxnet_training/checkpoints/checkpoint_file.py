"""The file format of checkpoints, and its errors.

A checkpoint is one zip file without compression, since a single file can be replaced atomically
both on disk and in S3. Common tools can read the members; ``weights.params`` has MXNet's format.
The last member, ``members.json``, lists all others with size and SHA-256. The zip's CRC-32 is not
enough, since a flipped bit in the zip's directory can make members disappear without an error.
"""

import hashlib
import json
import os
import zipfile
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Tuple

from sagemaker_mxnet_toolkit.failure import FailureKind, JobError

FORMAT = 1
"""Version of the format. A file with another version is rejected."""

ABOUT = "about.json"
"""The member with the position, the settings and the script's state."""

MANIFEST = "members.json"
CHUNK = 1 << 20
"""Bytes that are read or written at once."""

_MANIFEST_LIMIT = 16 << 20
_TRUSTED = 0o600 << 16  # permissions of an extracted member

Member = Tuple[str, Iterable[bytes]]


START_AFRESH = "set SAGEMAKER_MXNET_RESUME=none or use another directory to start afresh"
"""The way out for a checkpoint that does not fit the script, for error messages."""


class CheckpointError(JobError):
    """A script and its checkpoints do not match. A restart would not help."""

    kind = FailureKind.CHECKPOINT_USE


class DamagedError(CheckpointError):
    """A checkpoint file is corrupt. The message completes a sentence after the file's name."""


def weights_name(number: int = 0) -> str:
    """Return the name of the member with the weights of a network."""
    return f"weights-{number}.params" if number else "weights.params"


def states_name(number: int = 0) -> str:
    """Return the name of the member with a trainer's optimizer state, if it is on the workers.

    The state of servers is in ``server_state.part_name``.
    """
    return f"trainer-{number}.states" if number else "trainer.states"


def write(file: BinaryIO, members: Iterable[Member]) -> None:
    """Write a checkpoint.

    Args:
        file: an empty seekable file, open for writing.
        members: name and content of each member.

    Raises:
        OSError: the file cannot be written.
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


class CheckpointFile:
    """A checkpoint file, open for reading. It is a context manager.

    Args:
        path: the file.
        verified: whether ``verify`` has already succeeded, possibly in another process. Then only
            the zip's CRC-32 is checked, since SHA-256 takes longer than reading.

    Raises:
        DamagedError: the file is not a checkpoint, is incomplete or cannot be read. Only ``verify``
            and complete reads check the content of members.
    """

    def __init__(self, path: str, verified: bool = False) -> None:
        self.name = os.path.basename(path)
        self._verified = verified
        if os.path.exists(path) and not os.path.isfile(path):  # opening a FIFO would block
            raise DamagedError("it is not a regular file")
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises a dozen types for damaged files
            raise _damaged(error) from error
        try:
            self._members = self._check_list()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "CheckpointFile":
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
            DamagedError: it is corrupt; raised after the last chunk at the latest.
        """
        size, expected = self._members[name]
        digest, left = hashlib.sha256(), size
        try:
            with self._zip.open(name) as member:
                while left:
                    chunk = member.read(min(left, CHUNK))
                    if not chunk:
                        raise DamagedError(f"its member {name} is truncated")
                    left -= len(chunk)
                    if not self._verified:
                        digest.update(chunk)
                    yield chunk
        except (DamagedError, GeneratorExit):
            raise
        except Exception as error:
            raise _damaged(error) from error
        if not self._verified and digest.hexdigest() != expected:
            raise DamagedError(f"the SHA-256 of its member {name} does not match")

    def read(self, name: str) -> bytes:
        """Return a member's content.

        Raises:
            DamagedError: it is corrupt.
        """
        return b"".join(self.chunks(name))

    def verify(self) -> None:
        """Read and check all members, unless this was done before.

        Raises:
            DamagedError: a member is corrupt.
        """
        if not self._verified:
            for name in self._members:
                for _ in self.chunks(name):
                    pass
            self._verified = True

    def _check_list(self) -> Dict[str, Tuple[int, str]]:
        infos = {info.filename: info for info in self._zip.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise DamagedError("it has a compressed member, so it is not a checkpoint")
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
            raise DamagedError("its members do not match its list of members")
        return members


def _damaged(error: Exception) -> DamagedError:
    if isinstance(error, KeyError):
        return DamagedError(f"it has no list of members ({error})")
    text = str(error) or type(error).__name__
    return DamagedError(f"it cannot be read: {text}")
