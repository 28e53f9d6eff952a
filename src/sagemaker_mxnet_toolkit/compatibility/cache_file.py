"""The file of the import cache: where it is, who may write it, and when it is trusted.

It holds byte code, so whoever writes it runs code in every process that reads it. It is therefore
trusted as far as its owner is: root, the user of this process, or, beside this package, the owner
of the package, whose code runs anyway. It is never written to a directory that others can write to.

Two places, in this order: beside this package's own byte code, and ``sagemaker-mxnet-training`` in
the user's cache directory (``XDG_CACHE_HOME``, or ``~/.cache``), which is the user's alone. Where
neither can be written there is no cache, and nothing is said about it. ``PYTHONDONTWRITEBYTECODE``
leaves the second place alone.

A file appears by a rename and is whole: readers find the old one, the new one or none. It begins
with what it was made for and a checksum, so that one that was cut short, or made for something
else, is the same as none.
"""

import contextlib
import os
import stat
import sys
import time
from importlib.util import cache_from_source, source_hash
from typing import FrozenSet, Iterator, List, NamedTuple, Optional, Sequence

VARIABLE = "SAGEMAKER_MXNET_IMPORT_CACHE"
"""The environment variable that switches the cache off when it is ``0``."""

_LARGEST = 64 << 20
_CHECKSUM_BYTES = 8


class Place(NamedTuple):
    """A directory that may hold the file.

    Attributes:
        directory: its path; it need not exist.
        owners: user IDs whose files are trusted.
        private: whether the directory must be the user's alone, as the user's cache is.
    """

    directory: str
    owners: FrozenSet[int]
    private: bool


def enabled() -> bool:
    """Tell whether the cache may be used; only the value ``0`` of the variable forbids it."""
    return os.environ.get(VARIABLE, "").strip() != "0"


def beside_package() -> Place:
    """Return the place beside this package's byte code."""
    try:
        owner = os.stat(__file__).st_uid
    except OSError:  # in an archive
        owner = os.geteuid()
    directory = os.path.dirname(cache_from_source(__file__))
    return Place(directory, frozenset((0, os.geteuid(), owner)), private=False)


def usual_places() -> List[Place]:
    """Return the places where the file is looked for, the best first."""
    found = [beside_package()]
    user, home = os.geteuid(), os.path.expanduser("~")
    with contextlib.suppress(OSError):
        # Not the home of another user that sudo left in HOME: root's files would be in the way.
        if os.path.isabs(home) and os.stat(home).st_uid == user:
            cache = os.environ.get("XDG_CACHE_HOME", "")
            if not os.path.isabs(cache):
                cache = os.path.join(home, ".cache")
            directory = os.path.join(cache, "sagemaker-mxnet-training")
            found.append(Place(directory, frozenset((user,)), private=True))
    return found


def name_of(key: bytes) -> str:
    """Return the name of the file for a key, which is what its content depends on."""
    return f"mxnet-operators-{source_hash(key).hex()}.{sys.implementation.cache_tag}"


def read(key: bytes, places: Sequence[Place]) -> Optional[bytes]:
    """Return what was written for ``key``, or None where there is nothing that can be trusted."""
    for place in places:
        with contextlib.suppress(OSError), _opened(place) as directory:
            content = _content(_read(place, directory, name_of(key)), key)
            if content is not None:
                return content
    return None


def write(key: bytes, content: bytes, places: Sequence[Place], replace: bool = False) -> None:
    """Keep ``content`` for ``key`` in the first place that can be written, if there is one.

    Args:
        key: what the content was made for.
        content: what ``read`` is to return.
        places: where it may go, the best first.
        replace: whether it takes the place of what ``read`` returns.
    """
    name = name_of(key)
    for place in places:
        # Python is told to leave the directories of packages as they are.
        if sys.dont_write_bytecode and not place.private:
            continue
        with contextlib.suppress(OSError):
            os.makedirs(place.directory, mode=0o700 if place.private else 0o755, exist_ok=True)
            with _opened(place) as directory:
                if os.fstat(directory).st_mode & stat.S_IWOTH:
                    continue
                # Of many processes that start at once, those that come later need not write.
                if not replace and _fits(place, directory, key):
                    return
                header = key + b"\n" + source_hash(content)
                _replace(directory, name, header + content)
                return


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[int]:
    """Open a directory; what is done in it afterwards is done in this one, whatever is renamed."""
    directory = os.open(
        place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    try:
        found = os.fstat(directory)
        if place.private and (found.st_uid not in place.owners or found.st_mode & 0o077):
            raise PermissionError(f"{place.directory} is not the user's alone")
        yield directory
    finally:
        os.close(directory)


def _read(place: Place, directory: int, name: str) -> bytes:
    # A FIFO must not be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=directory), "rb") as file:
        found = os.fstat(file.fileno())
        trusted = found.st_uid in place.owners and not found.st_mode & 0o022
        if not (stat.S_ISREG(found.st_mode) and trusted and found.st_size <= _LARGEST):
            raise PermissionError(f"{name} is not trusted")
        return file.read()


def _fits(place: Place, directory: int, key: bytes) -> bool:
    with contextlib.suppress(OSError):
        return _content(_read(place, directory, name_of(key)), key) is not None
    return False


def _content(data: bytes, key: bytes) -> Optional[bytes]:
    start = len(key) + 1 + _CHECKSUM_BYTES
    content = data[start:]
    return content if data[:start] == key + b"\n" + source_hash(content) else None


def _replace(directory: int, name: str, data: bytes) -> None:
    new = f"{name}.{os.getpid()}-{time.monotonic_ns()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(new, flags, 0o600, dir_fd=directory), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(new, dir_fd=directory)
            raise
