"""Lists the checkpoints of a directory, finds the newest valid one, and those to delete.

File names are ``checkpoint-<number>-step-<step>.zip``. Checkpoints are ordered by the number, which
is incremented for each one in a directory. The step does not order them, since a fresh start in the
same directory has smaller steps. A name is never reused, so that a file is not replaced while
SageMaker's agent uploads it.

Neither MXNet nor NumPy is imported, since the supervisor also uses this module.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Collection, Iterable, List, Optional, Tuple

from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointFile, DamagedError

UPLOADING, UPLOADED, IGNORED = (
    ".sagemaker-uploading",
    ".sagemaker-uploaded",
    ".sagemaker-ignore",
)
"""Suffixes of SageMaker's checkpoint agent: upload started, upload finished, do not upload."""

_PREFIX = "checkpoint-"
_NAME = re.compile(_PREFIX + r"(\d{6,18})-step-(\d{1,18})\.zip")


@dataclass(frozen=True, order=True)
class Entry:
    """A checkpoint file.

    Attributes:
        number: its number, which orders the checkpoints of a directory.
        step: number of completed steps, in all epochs.
        name: the file's name.
    """

    number: int
    step: int
    name: str


@dataclass(frozen=True)
class Damage:
    """A corrupt checkpoint file, and the reason."""

    name: str
    reason: str


def entries(names: Iterable[str]) -> List[Entry]:
    """Return the checkpoints among file names, the oldest first, without the agent's markers."""
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            found.append(Entry(int(match.group(1)), int(match.group(2)), name))
    return sorted(found)


def listing(directory: str) -> List[Entry]:
    """Return the checkpoints of a directory, oldest first; an empty list without a directory."""
    return entries(_names(directory))


def newest_whole(
    directory: str, since: Optional[str] = None
) -> Tuple[Optional[Entry], List[Damage]]:
    """Return the newest valid checkpoint, and newer ones that are corrupt.

    Files are read and checked completely.

    Args:
        directory: the directory of checkpoints.
        since: name of a checkpoint; older ones are ignored.
    """
    damaged: List[Damage] = []
    oldest = min(entries([since or ""]), default=Entry(0, 0, ""))
    for entry in reversed(listing(directory)):
        if entry < oldest:
            break
        reason = verify(os.path.join(directory, entry.name))
        if reason is None:
            return entry, damaged
        damaged.append(Damage(entry.name, reason))
    return None, damaged


def verify(path: str) -> Optional[str]:
    """Return why a checkpoint file is corrupt, or ``None`` if it is valid."""
    try:
        with CheckpointFile(path) as file:
            file.verify()
    except DamagedError as error:
        return str(error)
    return None


def next_name(names: Iterable[str], step: int) -> str:
    """Return the name of the next checkpoint in a directory with these files.

    Names of which only a marker is left are not reused.
    """
    matches = (_NAME.match(name) for name in names)
    number = max((int(match.group(1)) for match in matches if match), default=0) + 1
    return f"{_PREFIX}{number:06d}-step-{step}.zip"


def expired(names: Collection[str], keep: int, inherited: Optional[str] = None) -> List[str]:
    """Return the names of checkpoints to delete: all except the newest ``keep``.

    SageMaker's agent also deletes them in S3, and an upload fails if its file is deleted. So files
    that are being uploaded are kept as well, and the newest one in S3, since the upload of newer
    ones may never finish.

    Args:
        names: names of all files in the directory.
        keep: number of checkpoints to keep, at least 1.
        inherited: the one that training has resumed from. If an earlier job wrote it, it is in S3
            without a marker.
    """
    known = [entry.name for entry in entries(names)]
    kept = {n for n in known if n + UPLOADING in names and n + UPLOADED not in names}
    for name in reversed(known):
        if name == inherited or name + UPLOADED in names:
            kept.add(name)
        if name + UPLOADED in names:
            break
    return [name for name in known[:-keep] if name not in kept]


def temporary_name(name: str) -> str:
    """Return the name of a checkpoint while it is written."""
    return name + IGNORED


def leftovers(names: Iterable[str]) -> List[str]:
    """Return the names of incomplete files of a process that was killed."""
    return [n for n in names if n.endswith(IGNORED) and _NAME.fullmatch(n[: -len(IGNORED)])]


def _names(directory: str) -> List[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(directory)
    return []
