"""Which checkpoints a directory holds, which is the newest whole one, and which may go.

File names are ``checkpoint-<number>-step-<step>.zip``. The number grows with each checkpoint that
is written into a directory and orders them. The step would not do: a fresh start in a directory of
an older run has smaller steps. A name is never used twice, so nothing is renamed over a file that
SageMaker's agent may be uploading.

Neither MXNet nor NumPy is imported: the supervisors use this module, too.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Collection, Iterable, List, Optional, Tuple

from sagemaker_mxnet_training.checkpoints.archive import Archive
from sagemaker_mxnet_training.checkpoints.errors import DamagedError

UPLOADING, UPLOADED, IGNORED = (
    ".sagemaker-uploading",
    ".sagemaker-uploaded",
    ".sagemaker-ignore",
)
"""Suffixes of SageMaker's checkpoint agent: an upload has begun, has ended; never upload this."""

_PREFIX = "checkpoint-"
_NAME = re.compile(_PREFIX + r"(\d{6,18})-step-(\d{1,18})\.zip")


@dataclass(frozen=True, order=True)
class Entry:
    """A checkpoint file by its name.

    Attributes:
        number: orders the checkpoints of a directory.
        step: steps of training that were done, over all epochs.
        name: the file's name.
    """

    number: int
    step: int
    name: str


@dataclass(frozen=True)
class Damage:
    """A checkpoint file that cannot be used, and why."""

    name: str
    reason: str


def entries(names: Iterable[str]) -> List[Entry]:
    """Return those names that are checkpoints, oldest first. The agent's markers are none."""
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            found.append(Entry(int(match.group(1)), int(match.group(2)), name))
    return sorted(found)


def listing(directory: str) -> List[Entry]:
    """Return the checkpoints of a directory, oldest first; none where there is no directory."""
    return entries(_names(directory))


def newest_whole(
    directory: str, since: Optional[str] = None
) -> Tuple[Optional[Entry], List[Damage]]:
    """Return the newest checkpoint that is whole, and the damaged ones that are newer.

    Every byte of the files it looks at is read and checked.

    Args:
        directory: the directory of checkpoints.
        since: name of a checkpoint; older ones are not looked at.
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
    """Return what is wrong with a checkpoint file, or ``None`` when it is whole."""
    try:
        with Archive(path) as archive:
            archive.verify()
    except DamagedError as error:
        return str(error)
    return None


def next_name(names: Iterable[str], step: int) -> str:
    """Return the name of the next checkpoint in a directory that holds ``names``.

    A name that only a marker is left of counts as used.
    """
    matches = (_NAME.match(name) for name in names)
    number = max((int(match.group(1)) for match in matches if match), default=0) + 1
    return f"{_PREFIX}{number:06d}-step-{step}.zip"


def expired(names: Collection[str], keep: int, inherited: Optional[str] = None) -> List[str]:
    """Return the names of the checkpoints to delete: all but the newest ``keep``.

    SageMaker's agent deletes in S3 what is deleted here, and an upload that loses its file fails.
    So more stay for now: what is being uploaded, and the newest one that S3 has, since those after
    it may never get there.

    Args:
        names: of all files in the directory.
        keep: how many to keep, at least 1.
        inherited: the one that training went on from. S3 has it without a marker, if an earlier
            job wrote it, and else perhaps not yet.
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
    """Return the name that a checkpoint has while it is written."""
    return name + IGNORED


def leftovers(names: Iterable[str]) -> List[str]:
    """Return the names of files that a process left that was killed while it wrote them."""
    return [n for n in names if n.endswith(IGNORED) and _NAME.fullmatch(n[: -len(IGNORED)])]


def _names(directory: str) -> List[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(directory)
    return []
