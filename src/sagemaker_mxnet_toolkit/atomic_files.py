"""Atomic writes: a file is written under a temporary name, flushed, and renamed. Also locks."""

import contextlib
import errno
import fcntl
import itertools
import os
import re
from typing import Iterator, List

_NUMBERS = itertools.count()
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)  # EBADF: NFS, directory
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]+)-[0-9]+\.partial")


@contextlib.contextmanager
def replacing(*paths: str, flush: bool = True) -> Iterator[List[str]]:
    """Yield temporary paths to write to; when the block ends they are renamed to ``paths``.

    Readers see either the complete old file or the complete new one. Files are renamed in the order
    of ``paths``; a process killed between two renames leaves some old and some new. Nothing changes
    if the block raises. The temporary files of a killed process are removed by the next call for
    the same path, and by ``remove_leftovers``.

    Args:
        *paths: files to create or replace, in existing directories. The block must write all.
        flush: flush the content to disk before the rename, so that it survives a crash.

    Raises:
        OSError: a file cannot be flushed or renamed, with its path.
    """
    for path in paths:
        _remove_abandoned(path)
    temporary = [_temporary_path(path) for path in paths]
    try:
        yield temporary
        if flush:
            for path in temporary:
                _flush(path)
        for path, final in zip(temporary, paths):
            os.replace(path, final)
        if flush:
            for directory in sorted({os.path.dirname(path) for path in paths}):
                with contextlib.suppress(OSError):  # some network file systems cannot do it
                    _flush(directory or os.curdir)
    finally:
        for path in temporary:
            with contextlib.suppress(OSError):
                os.unlink(path)


def write_text(path: str, text: str, flush: bool = True) -> None:
    """Write a text file atomically. Lone surrogates become ``?``.

    Raises:
        OSError: the file cannot be written, with the path.
    """
    with replacing(path, flush=flush) as (temporary,), naming(temporary), open(
        temporary, "w", encoding="utf-8", errors="replace"
    ) as file:
        file.write(text)


def remove_leftovers(directory: str) -> None:
    """Remove temporary files from a directory. No process may be writing to it.

    Raises:
        OSError: the directory cannot be read, or a file cannot be removed.
    """
    for name in os.listdir(directory):
        if _TEMPORARY.fullmatch(name):
            os.unlink(os.path.join(directory, name))


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Set the file name of an ``OSError`` that lacks it, as those of ``write`` and ``fsync`` do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _temporary_path(path: str) -> str:
    # Unique, because a signal handler may write a file that is being written.
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.getpid()}-{next(_NUMBERS)}.partial")


def _remove_abandoned(path: str) -> None:
    directory, final = os.path.split(path)
    with contextlib.suppress(OSError):
        for name in os.listdir(directory or os.curdir):
            match = _TEMPORARY.fullmatch(name)
            if match and match["name"] == final and not _is_running(int(match["pid"])):
                os.unlink(os.path.join(directory, name))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Try to lock an open file or directory; return whether that succeeded.

    The lock ends with the descriptor. On a file system without locks everything succeeds.

    Raises:
        OSError: the lock cannot be taken for another reason.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
