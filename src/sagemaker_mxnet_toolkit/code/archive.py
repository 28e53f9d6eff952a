"""Unpacking a source archive that may be broken or hostile.

Whatever is wrong with it is an error: a member that would have to be renamed or left out to be
harmless is code that the user will miss later. (The ``filter`` of newer tarfile modules is not
used: CPython 3.8.0 has none, and it neither checks the whole stream nor refuses what it skips.)
"""

import os
import shutil
import tarfile
import zlib
from typing import Optional

from sagemaker_mxnet_toolkit.errors import CodeError

_EXPECTED = "expected a gzip-compressed tar archive (sourcedir.tar.gz)"


def unpack(path: str, folder: str, name: str) -> None:
    """Unpack a gzip-compressed tar archive.

    Members keep their permissions, less set-user-ID, set-group-ID and the sticky bit; owners and
    times are not restored. The whole stream is read, so that its checksum counts.

    Args:
        path: the archive.
        folder: an empty directory; on an error, what is in it means nothing.
        name: what the archive is called in an error.

    Raises:
        CodeError: when it is no archive, corrupt, truncated, or when a member leaves its folder or
            is neither a file, a directory nor a link.
        OSError: when ``folder`` cannot be written.
    """
    inside = os.path.realpath(folder)
    member: Optional[tarfile.TarInfo] = None
    try:
        with tarfile.open(path, mode="r:gz") as tar:
            for member in tar:
                _place(tar, member, inside, name)
            # A broken header ends the iteration as the end of the archive does (tarfile.next);
            # what tells them apart is that nothing but zeros follows the end.
            while True:
                block = tar.fileobj.read(1 << 20) if tar.fileobj else b""
                if not block:
                    break
                if block.strip(b"\0"):
                    raise tarfile.ReadError("there is more after its last readable member")
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise _unreadable(name, member, error) from error
    except OSError as error:
        # gzip tells a broken stream by an OSError without a number; the system's errors have one.
        if error.errno is not None:
            raise
        raise _unreadable(name, member, error) from error
    _check_links(inside, name)


def _unreadable(name: str, member: Optional[tarfile.TarInfo], error: Exception) -> CodeError:
    """Return the error of an archive that cannot be read to its end."""
    place = f" (after member {member.name!r})" if member else ""
    return CodeError(
        f"the source archive {name} is corrupt or truncated{place}: {error}; {_EXPECTED}: "
        "pack and upload it again"
    )


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, inside: str, name: str) -> None:
    """Make one member, below directories that are none of the archive's links."""
    target = os.path.normpath(os.path.join(inside, member.name))
    if os.path.isabs(member.name) or not _is_within(target, inside):
        raise _refused(name, member, "leaves the folder it is unpacked into")
    parent = os.path.dirname(target) if target != inside else inside
    if os.path.realpath(parent) != parent:
        raise _refused(name, member, "lies behind a link")
    if os.path.islink(target) and member.isdir():
        raise _refused(name, member, "lies behind a link")
    try:
        os.makedirs(target if member.isdir() else parent, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise _refused(name, member, "needs a directory where the archive has a file") from error
    if member.isdir():
        return
    if os.path.isdir(target) and not os.path.islink(target):
        raise _refused(name, member, "has the name of a directory")
    if os.path.lexists(target):
        os.unlink(target)  # as tar does: of two members with one name, the last counts
    if member.isreg():
        source = tar.extractfile(member)
        assert source is not None  # a regular member has data
        with open(target, "xb") as copy:
            shutil.copyfileobj(source, copy)
        os.chmod(target, (member.mode & 0o777) | 0o600)
    elif member.issym():
        os.symlink(member.linkname, target)  # judged at the end, when all that it may name is there
    elif member.islnk():
        os.link(_original(member, inside, name), target)
    else:
        raise _refused(name, member, "is a device, a FIFO or another special file")


def _original(member: tarfile.TarInfo, inside: str, name: str) -> str:
    """Return the path of the earlier member that a hard link names."""
    path = os.path.normpath(os.path.join(inside, member.linkname))
    if not _is_within(path, inside) or os.path.realpath(path) != path:
        raise _refused(name, member, f"is a link to {member.linkname!r}, outside the archive")
    if not os.path.isfile(path):
        raise _refused(name, member, f"is a link to {member.linkname!r}, which is not there")
    return path


def _check_links(inside: str, name: str) -> None:
    """Refuse symbolic links that lead out of the folder, over however many others."""
    for parent, directories, files in os.walk(inside):
        for entry in directories + files:
            path = os.path.join(parent, entry)
            if not os.path.islink(path):
                continue
            if os.path.isabs(os.readlink(path)) or not _is_within(os.path.realpath(path), inside):
                raise CodeError(
                    f"the source archive {name} is refused: member "
                    f"{os.path.relpath(path, inside)!r} is a link to {os.readlink(path)!r}, "
                    "outside the archive; expected links within it: pack what it names instead "
                    "('tar -h')"
                )


def _refused(name: str, member: tarfile.TarInfo, why: str) -> CodeError:
    """Return the error of a member that is not unpacked."""
    return CodeError(
        f"the source archive {name} is refused: member {member.name!r} {why}; expected files, "
        "directories and links below one folder: pack it again from within the source directory"
    )


def _is_within(path: str, folder: str) -> bool:
    """Tell whether a normalised path is a folder or lies in it."""
    return path == folder or path.startswith(folder + os.sep)
