"""Unpacks the user's source archive, ``sourcedir.tar.gz``."""

import os
import tarfile
import zlib
from typing import List, Optional

from sagemaker_mxnet_toolkit.errors import CodeError
from sagemaker_mxnet_toolkit.progress import write_line

_EXPECTED = "expected a gzip-compressed tar archive (sourcedir.tar.gz)"
_SKIPPED_SHOWN = 5

# CPython 3.8.17, 3.9.17, 3.10.12, 3.11.4 and later.
_HAS_FILTERS = hasattr(tarfile, "data_filter")


def unpack(path: str, folder: str, name: str) -> None:
    """Unpack a gzip-compressed tar archive.

    Members are extracted as by ``tarfile``'s ``data`` filter: with their permissions, without their
    owners. Members that it rejects, such as a link to an absolute path, are skipped with a warning,
    as in sagemaker-training 5.1.4. The stream is read to its end to verify its checksum.

    Args:
        path: the archive.
        folder: an empty directory; its content is undefined after an error.
        name: name of the archive in errors.

    Raises:
        CodeError: the file is not an archive, is corrupt or truncated.
        OSError: ``folder`` cannot be written.
    """
    member: Optional[tarfile.TarInfo] = None
    skipped: List[str] = []
    try:
        with tarfile.open(path, mode="r:gz") as tar:
            for member in tar:
                if not _extract(tar, member, folder):
                    link = f" -> {member.linkname}" if member.linkname else ""
                    skipped.append(member.name + link)
            # tarfile stops at a corrupt header as at the end of the archive (tarfile.next).
            # Only zeros follow the real end.
            while True:
                block = tar.fileobj.read(1 << 20) if tar.fileobj else b""
                if not block:
                    break
                if block.strip(b"\0"):
                    raise tarfile.ReadError("unreadable data after the last member")
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise _unreadable(name, member, error) from error
    except OSError as error:
        # gzip reports a corrupt stream as an OSError without an error number.
        if error.errno is not None:
            raise
        raise _unreadable(name, member, error) from error
    if skipped:
        more = len(skipped) - _SKIPPED_SHOWN
        listed = ", ".join(skipped[:_SKIPPED_SHOWN]) + (f" and {more} more" if more > 0 else "")
        write_line(
            f"warning: {name}: skipped special files and links that point outside the archive: "
            f"{listed}; if the script needs them, archive the files instead of links ('tar -h')"
        )


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: str) -> bool:
    """Extract one member; return whether it is allowed."""
    try:
        if _HAS_FILTERS:
            tar.extract(member, folder, filter="data")
            return True
        is_plain = member.isreg() or member.isdir() or member.issym() or member.islnk()
        if not is_plain or os.path.isabs(member.linkname) or ".." in member.name.split("/"):
            return False
        member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
        member.mode = member.mode & 0o755 | (0o700 if member.isdir() else 0o600)
        tar.extract(member, folder)
    except KeyError:  # a hard link to a file that is not in the archive
        return False
    except tarfile.TarError as error:
        if _HAS_FILTERS and isinstance(error, tarfile.FilterError):
            return False
        raise
    return True


def _unreadable(name: str, member: Optional[tarfile.TarInfo], error: Exception) -> CodeError:
    """Return the error for a corrupt archive."""
    place = f" (after member {member.name!r})" if member else ""
    return CodeError(
        f"the source archive {name} is corrupt or truncated{place}: {error}; {_EXPECTED}: "
        "create and upload it again"
    )
