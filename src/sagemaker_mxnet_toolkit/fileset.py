"""Replaces several files as one: whoever reads them finds all of the old or all of the new.

POSIX renames one file at a time, so three renames can be cut short after the first. Here the
moment of change is one rename all the same. With ``S`` for the hidden stage directory:

1. The new files are written to ``S/new`` and flushed; the old ones stay where they are.
2. The old files get a second name in ``S/old``, and ``S/current`` becomes a symbolic link to it.
3. Each final name becomes a symbolic link into ``S/current``: still the old file, by another way.
4. ``S/current`` is renamed over to point to ``S/new``: all names change in this one step.
5. Each final name becomes the plain file it leads to, and the stage goes.

A process that dies at any point leaves final names that all lead to the same set. What else it
leaves is cleared by the next ``replacing`` or by ``settle``. One reader alone can miss a file: one
that the kernel stops on its way through a link until the stage is gone; when it looks again, the
file is there. Rejected: a journal of renames, which only helps readers that know of it, and links
that stay, which would end up in the model's archive.
"""

import contextlib
import errno
import fcntl
import os
import threading
from typing import Dict, Iterator, Sequence, Set, Tuple

STAGE = ".replacing"
"""Name of the directory that exists beside the files while they are replaced."""

_held: Set[Tuple[str, int]] = set()
_replaced: Dict[str, int] = {}


@contextlib.contextmanager
def replacing(directory: str, names: Sequence[str]) -> Iterator[str]:
    """Give a directory to write the new files into; at the end of the block they are in place.

    A block that raises changes nothing. Another process or thread that replaces files of the same
    directory is waited for; a signal handler that does so in the middle of the block is not, and
    its files, the newer ones, are those that stay. Where the file system has no symbolic links the
    files are renamed one after the other: each is whole, but a process killed in between leaves
    some old, some new.

    Args:
        directory: an existing directory that holds the files, or will.
        names: the files' names in it; the block must write each.

    Raises:
        OSError: when a file cannot be written, flushed or put in place, with its path. The old
            files are then as they were; or all are new, where only clearing up failed.
    """
    key = os.path.realpath(directory)
    with _locked(key):
        before = _replaced.get(key, 0)
        settle(directory)
        try:
            new = _make_stage(directory)
            yield new
            for name in names:
                _flush(os.path.join(new, name))
            _flush(new)
            _exchange(directory, names)
        except FileNotFoundError:
            # A signal handler replaced the files and took this stage for an abandoned one.
            if _replaced.get(key, 0) == before:
                raise
        finally:
            settle(directory)
        _replaced[key] = before + 1


def settle(directory: str) -> None:
    """Finish what an interrupted ``replacing`` left: plain files of one set, no stage.

    It decides nothing: readers find the same contents before and after.

    Raises:
        OSError: when the directory cannot be changed.
    """
    stage = os.path.join(directory, STAGE)
    if not os.path.isdir(stage):
        return
    try:
        for name in os.listdir(directory):
            _make_plain(directory, name)
        _flush(directory)
        from shutil import rmtree  # noqa: PLC0415  (the entrypoint hardly ever needs it)

        rmtree(stage)
        _flush(directory)
    except FileNotFoundError:
        if os.path.isdir(stage):  # else a signal handler settled it meanwhile
            raise


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Add the path to an ``OSError`` that has none: ``write`` and ``fsync`` know only a number."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _make_stage(directory: str) -> str:
    new = os.path.join(directory, STAGE, "new")
    try:
        os.makedirs(new)
    except FileNotFoundError:  # a signal handler took the stage away before ``new`` was in it
        os.makedirs(new)
    return new


def _exchange(directory: str, names: Sequence[str]) -> None:
    stage = os.path.join(directory, STAGE)
    current, old = os.path.join(stage, "current"), os.path.join(stage, "old")
    try:
        os.symlink("old", current)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        for name in names:
            os.replace(os.path.join(stage, "new", name), os.path.join(directory, name))
        return
    os.mkdir(old)
    for name in names:
        final = os.path.join(directory, name)
        if os.path.exists(final):
            _double(os.path.realpath(final), os.path.join(old, name))
    _flush(old)
    _flush(stage)
    for name in names:
        _relink(_way(name), os.path.join(directory, name), stage)
    _flush(directory)
    _relink("new", current, stage)
    _flush(stage)


def _make_plain(directory: str, name: str) -> None:
    stage, final = os.path.join(directory, STAGE), os.path.join(directory, name)
    current, plain = os.path.join(stage, "current", name), os.path.join(stage, "plain-" + name)
    if not (os.path.islink(final) and os.readlink(final) == _way(name)):
        return
    if os.path.exists(current):
        # By a second name, because a reader may just now be on its way through the link.
        with contextlib.suppress(OSError):  # no hard links here, or made before
            os.link(current, plain)
        os.replace(plain if os.path.exists(plain) else current, final)
    else:  # there was no old file of this name
        os.unlink(final)


def _way(name: str) -> str:
    return os.path.join(STAGE, "current", name)


def _relink(target: str, path: str, stage: str) -> None:
    fresh = os.path.join(stage, "link")
    os.symlink(target, fresh)
    os.replace(fresh, path)


def _double(path: str, other: str) -> None:
    try:
        os.link(path, other)
    except OSError:  # no hard links here, or not to this file: then the same bytes again
        from shutil import copyfile  # noqa: PLC0415

        with naming(other):
            copyfile(path, other)
        _flush(other)


def _flush(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    holder = (directory, threading.get_ident())
    if holder in _held:  # in a signal handler: to wait for the code below it would be for ever
        yield
        return
    file = os.open(directory, os.O_RDONLY)
    try:
        _held.add(holder)
        # NFS locks no directory; there callers must see to it that only one of them writes.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        _held.discard(holder)
        # Closing would not do: a child forked meanwhile has the descriptor, and so the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)
