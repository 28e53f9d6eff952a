"""Fetches the user's code into the code directory.

The source is a directory, a gzip-compressed tar archive, or such an archive on S3. It is copied or
unpacked into a staging directory inside the code directory (which may be a mount), and then moved
into place, so that a corrupt source leaves nothing there.

The files of a fetch are recorded, and the next fetch replaces them. Other files in the code
directory are an error. (sagemaker-training skips the fetch instead, and runs other code than was
sent: sagemaker-training-toolkit #85 and #222.)

A module for ``processes.program``, with the arguments ``--source SOURCE --code-dir DIRECTORY
--setting TEXT [--region REGION] [--channel DIRECTORY]...``. Downloads from S3 use
sagemaker-training, which creates directories below ``SAGEMAKER_BASE_DIR`` when imported.
"""

import argparse
import json
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.atomic_files import remove_leftovers, write_text
from sagemaker_mxnet_toolkit.failure import CodeError
from sagemaker_mxnet_toolkit.processes.child_report import Report, progress, write_line

RECORD = ".sagemaker_mxnet_source.json"
"""File in the code directory: ``{"source": <text>, "entries": [<name>, ...]}``."""

_STAGING = ".sagemaker_mxnet_fetch"
_NOT_CODE = frozenset({RECORD, _STAGING, "lost+found"})
_IGNORED = frozenset({".git", ".hg", ".svn", "__pycache__"})
_LOGGED_BYTES = 10**6  # the size of larger directories is logged
_SOURCES = "expected a directory, a .tar.gz or s3://BUCKET/KEY"
_ARCHIVE = "expected a gzip-compressed tar archive (sourcedir.tar.gz)"
_SKIPPED_SHOWN = 5

# CPython 3.8.17, 3.9.17, 3.10.12, 3.11.4 and later.
_HAS_FILTERS = hasattr(tarfile, "data_filter")


def fetch(
    source: str,
    code_dir: str,
    setting: str = "the setting",
    region: Optional[str] = None,
    channels: Collection[str] = (),
) -> None:
    """Fetch the code into the code directory, replacing that of an earlier fetch.

    When a directory is copied, version control folders, ``__pycache__``, virtual environments,
    sockets, FIFOs, run directories (``holds_run``) and the code directory itself are skipped.
    Directories of input channels become links.

    Args:
        source: a directory, a ``.tar.gz`` or ``s3://bucket/key``.
        code_dir: the code directory, created if necessary.
        setting: name of the setting that has the source, for errors.
        region: AWS region of an object on S3; by default that of boto3's configuration.
        channels: directories of the job's input channels, which may be inside the source.

    Raises:
        CodeError: the source cannot be fetched, or the code directory cannot be written or contains
            other files.
    """
    staging = os.path.join(code_dir, _STAGING)
    try:
        os.makedirs(code_dir, exist_ok=True)
        _remove(staging)
        remove_leftovers(code_dir)
        recorded, fetched = _read_record(code_dir)
        others = set(os.listdir(code_dir)) - _NOT_CODE - fetched
        if others and not recorded:
            raise _occupied(source, code_dir, setting, others)
        try:
            os.mkdir(staging)
            _stage(source, code_dir, staging, setting, region, channels)
            entries = set(os.listdir(staging))
            if others & entries:
                raise _occupied(source, code_dir, setting, others & entries)
            # If this is interrupted, the record has the files of both fetches.
            _write_record(code_dir, source, entries | fetched)
            for entry in fetched:
                _remove(os.path.join(code_dir, entry))
            for entry in entries:
                os.rename(os.path.join(staging, entry), os.path.join(code_dir, entry))
            _write_record(code_dir, source, entries)
        finally:
            _remove(staging)
    except OSError as error:
        raise CodeError(
            f"the code cannot be copied from {source} to {code_dir}: {error}; "
            "expected a readable source and a writable code directory with enough space"
        ) from error


def holds_run(directory: str) -> bool:
    """Return whether a directory is the run directory of ``local``."""
    names = ("input", "output", "checkpoints")
    return any(os.path.isdir(os.path.join(directory, "algo-1", name)) for name in names)


def _stage(
    source: str,
    code_dir: str,
    staging: str,
    setting: str,
    region: Optional[str],
    channels: Collection[str],
) -> None:
    """Copy or unpack the source into the staging directory."""
    if source.startswith("s3://"):
        # Outside the code directory, where the rest of a killed download would look like code.
        with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as folder:
            download = os.path.join(folder, "source.tar.gz")
            _download(source, download, setting, region)
            unpack(download, staging, source)
    elif os.path.isdir(source):
        _copy(os.path.realpath(source), os.path.realpath(code_dir), staging, channels)
    elif os.path.isfile(source):
        unpack(source, staging, source)
    elif "://" in source:
        raise CodeError(f"the code at {source} cannot be fetched: {_SOURCES} in {setting}")
    else:
        raise CodeError(f"the code at {source} does not exist; {_SOURCES} in {setting}")


def _download(uri: str, path: str, setting: str, region: Optional[str]) -> None:
    """Download an object from S3."""
    with progress(f"downloading {uri}"):
        endpoint = s3_endpoint(os.environ)
        if endpoint:
            os.environ["S3_ENDPOINT_URL"] = endpoint  # s3_download reads only this variable
        if region:
            os.environ["AWS_REGION"] = region
        import boto3.exceptions
        import botocore.exceptions
        from sagemaker_training import files

        try:
            files.s3_download(uri, path)
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            boto3.exceptions.Boto3Error,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split())
            raise CodeError(
                f"the code at {uri} cannot be downloaded: {reason}; expected an object that this "
                f"host can reach and may read: check {setting} and the role's permission "
                "s3:GetObject; with network isolation, use a local path"
            ) from error


def s3_endpoint(environ: Mapping[str, str]) -> Optional[str]:
    """Return the URL of a custom S3 endpoint, or ``None``.

    ``S3_ENDPOINT_URL`` is sagemaker-training 5.1.4's variable; the others are those of the AWS SDKs
    (SDK reference, "Service-specific endpoints"), which SageMaker's Python SDK exports.
    """
    if environ.get("S3_ENDPOINT_URL"):
        return environ["S3_ENDPOINT_URL"]
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None


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
        f"the source archive {name} is corrupt or truncated{place}: {error}; {_ARCHIVE}: "
        "create and upload it again"
    )


def _copy(source: str, code_dir: str, staging: str, channels: Collection[str]) -> None:
    """Copy a directory. Relative links to paths outside it become absolute."""
    linked = {os.path.realpath(channel) for channel in channels}
    found: List[str] = []

    def ignored(folder: str, names: List[str]) -> List[str]:
        paths = [os.path.join(folder, name) for name in names]
        found.extend(path for path in paths if path in linked)
        return [os.path.basename(p) for p in paths if p in linked or _is_ignored(p, code_dir)]

    try:
        shutil.copytree(source, staging, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    except shutil.Error as error:
        raise OSError("; ".join(str(reason) for _, _, reason in error.args[0][:3])) from error
    finally:
        os.chmod(staging, 0o700)  # copytree has copied the mode of the source
    sizes: Dict[str, int] = {}
    for parent, directories, files in os.walk(staging):
        for name in directories + files:
            path = os.path.join(parent, name)
            entry = os.path.relpath(path, staging).split(os.sep)[0]
            sizes[entry] = sizes.get(entry, 0) + _size(path)
            if os.path.islink(path) and not os.path.isabs(os.readlink(path)):
                folder = os.path.join(source, os.path.relpath(parent, staging))
                target = os.path.normpath(os.path.join(folder, os.readlink(path)))
                if not (target + os.sep).startswith(source + os.sep):
                    os.unlink(path)
                    os.symlink(target, path)
    for path in found:
        os.symlink(path, os.path.join(staging, os.path.relpath(path, source)))
    total = sum(sizes.values())
    if total >= _LOGGED_BYTES:
        largest = max(sizes, key=lambda entry: sizes[entry])
        write_line(
            f"copied {total / 1e6:.1f} MB from {source}, {sizes[largest] / 1e6:.1f} MB of it in "
            f"{largest}; a directory of an input channel would be linked instead"
        )


def _size(path: str) -> int:
    about = os.lstat(path)
    return about.st_size if stat.S_ISREG(about.st_mode) else 0


def _is_ignored(path: str, code_dir: str) -> bool:
    """Return whether a path in the source directory is not copied."""
    folder, name = os.path.split(path)
    if holds_run(path) or (name.startswith("algo-") and holds_run(folder)):
        return True
    run = os.path.dirname(os.path.dirname(code_dir))
    holds_own_run = holds_run(run) and run.startswith(path + os.sep)
    if (code_dir + os.sep).startswith(path + os.sep) and not holds_own_run:
        write_line(f"skipping {path}: it contains the code directory")
        return True
    kind = stat.S_IFMT(os.lstat(path).st_mode)
    return (
        name in _IGNORED
        or kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        or os.path.isfile(os.path.join(path, "pyvenv.cfg"))
    )


def _occupied(source: str, code_dir: str, setting: str, others: Iterable[str]) -> CodeError:
    """Return the error for a code directory with files that are not from a fetch."""
    names = sorted(others)
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return CodeError(
        f"the code directory {code_dir} already contains files that are not from {source} "
        f"({listed}); expected an empty directory, or one from an earlier fetch: empty it to run "
        f"the code from {source}, or set {setting} to {code_dir} to run the code that it contains"
    )


def _read_record(code_dir: str) -> Tuple[bool, Set[str]]:
    """Return whether the code directory has a record of a fetch, and the names in it."""
    try:
        with open(os.path.join(code_dir, RECORD), encoding="utf-8") as file:
            entries = json.load(file)["entries"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False, set()
    if not isinstance(entries, list):
        return False, set()
    # These are deleted, so only names directly in the code directory are valid.
    names = {str(entry) for entry in entries} - {os.curdir, os.pardir, ""}
    return True, {name for name in names if os.path.basename(name) == name}


def _write_record(code_dir: str, source: str, entries: Iterable[str]) -> None:
    """Record the names that a fetch puts into the code directory."""
    data: Dict[str, Any] = {"source": source, "entries": sorted(entries)}
    write_text(os.path.join(code_dir, RECORD), json.dumps(data))


def _remove(path: str) -> None:
    """Remove a file, a link or a directory, if it exists."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def main(arguments: List[str], report: Report) -> None:
    """Fetch the user's code (see the module)."""
    parser = argparse.ArgumentParser(prog="fetch", description="Fetch the user's code.")
    parser.add_argument("--source", required=True)
    parser.add_argument("--code-dir", required=True, metavar="DIRECTORY")
    parser.add_argument("--setting", required=True)
    parser.add_argument("--region")
    parser.add_argument("--channel", action="append", default=[], metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    fetch(options.source, options.code_dir, options.setting, options.region, options.channel)
