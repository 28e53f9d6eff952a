"""Brings the user's code into the code directory.

The source is a directory, a gzip-compressed tar archive or one on S3. It is laid out completely in
a folder of its own inside the code directory, which may be a mount, and only then moved into
place: a broken source leaves nothing there.

What a fetch put into the code directory is recorded there, and replaced by the next fetch. What
anybody else put there is neither run, nor mixed with the fetched code, nor deleted: it is an
error. (The toolkits before us skip the fetch instead, and run other code than was sent:
sagemaker-training-toolkit #85 and #222.)

A module for ``processes.program``, with the arguments ``--source SOURCE --code-dir DIRECTORY
--setting TEXT [--region REGION]``. The code for S3 is sagemaker-training's, which makes directories
below ``SAGEMAKER_BASE_DIR`` when imported.
"""

import json
import os
import stat
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.code import s3
from sagemaker_mxnet_toolkit.errors import CodeError
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_toolkit.progress import progress, write_line

RECORD = ".sagemaker_mxnet_source.json"
"""File in the code directory: ``{"source": <text>, "entries": [<name>, ...]}``."""

_STAGING = ".sagemaker_mxnet_fetch"
_NOBODYS = frozenset({RECORD, _STAGING, _STAGING + ".json", "lost+found"})
_LEFT_OUT = frozenset({".git", ".hg", ".svn", "__pycache__"})
_SOURCES = "expected a directory, a .tar.gz or s3://BUCKET/KEY"


def fetch(
    source: str, code_dir: str, setting: str = "the setting", region: Optional[str] = None
) -> None:
    """Bring the code into the code directory, replacing what an earlier fetch put there.

    Of a directory, version control folders, ``__pycache__``, virtual environments, sockets and
    FIFOs are left out, and the part that holds the code directory itself.

    Args:
        source: a directory, a ``.tar.gz`` or ``s3://bucket/key``.
        code_dir: where to; made if necessary.
        setting: what the user sets to name the source, for errors.
        region: AWS region of an object on S3; ``None`` for that of boto3's own configuration.

    Raises:
        CodeError: when the source cannot be had, or the code directory cannot be written or holds
            something else.
    """
    staging = os.path.join(code_dir, _STAGING)
    try:
        os.makedirs(code_dir, exist_ok=True)
        _remove(staging)
        recorded, fetched = _read_record(code_dir)
        others = set(os.listdir(code_dir)) - _NOBODYS - fetched
        if others and not recorded:
            raise _occupied(source, code_dir, setting, others)
        try:
            os.mkdir(staging)
            _lay_out(source, code_dir, staging, setting, region)
            entries = set(os.listdir(staging))
            if others & entries:
                raise _occupied(source, code_dir, setting, others & entries)
            # Whatever interrupts the exchange, the record covers all that a fetch put there.
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
            f"the code cannot be brought from {source} into {code_dir}: {error}; "
            "expected a readable source and a writable code directory with enough space"
        ) from error


def _lay_out(source: str, code_dir: str, staging: str, setting: str, region: Optional[str]) -> None:
    """Fill the staging folder from the source."""
    from sagemaker_mxnet_toolkit.code.archive import unpack  # noqa: PLC0415 - only when it is needed

    if source.startswith("s3://"):
        # Not in the code directory: what is left of a killed download must not look like code.
        import tempfile  # noqa: PLC0415

        with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as folder:
            download = os.path.join(folder, "source.tar.gz")
            _download(source, download, setting, region)
            unpack(download, staging, source)
    elif os.path.isdir(source):
        _copy(os.path.realpath(source), os.path.realpath(code_dir), staging)
    elif os.path.isfile(source):
        unpack(source, staging, source)
    elif "://" in source:
        raise CodeError(f"the code at {source} cannot be fetched: {_SOURCES} in {setting}")
    else:
        raise CodeError(f"the code at {source} does not exist; {_SOURCES} in {setting}")


def _download(uri: str, path: str, setting: str, region: Optional[str]) -> None:
    """Download an object from S3, to where the variables that boto3 knows say it is."""
    with progress(f"downloading {uri}"):
        endpoint = s3.endpoint(os.environ)
        if endpoint:
            os.environ["S3_ENDPOINT_URL"] = endpoint  # the one name that s3_download knows
        if region:
            os.environ["AWS_REGION"] = region
        import boto3.exceptions  # noqa: PLC0415
        import botocore.exceptions  # noqa: PLC0415
        from sagemaker_training import files  # noqa: PLC0415

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
                f"host can reach and may read: see {setting}, the role's permission s3:GetObject "
                "and, with network isolation, a local path"
            ) from error


def _copy(source: str, code_dir: str, staging: str) -> None:
    """Copy a directory; links stay links, and go on naming what they named."""
    import shutil  # noqa: PLC0415

    def left_out(folder: str, names: List[str]) -> List[str]:
        return [name for name in names if _is_left_out(os.path.join(folder, name), code_dir)]

    try:
        shutil.copytree(source, staging, symlinks=True, ignore=left_out, dirs_exist_ok=True)
    except shutil.Error as error:
        raise OSError("; ".join(str(reason) for _, _, reason in error.args[0][:3])) from error
    finally:
        os.chmod(staging, 0o700)  # copytree gives it the mode of the source
    for parent, directories, files in os.walk(staging):
        for name in directories + files:
            path = os.path.join(parent, name)
            if os.path.islink(path) and not os.path.isabs(os.readlink(path)):
                folder = os.path.join(source, os.path.relpath(parent, staging))
                target = os.path.normpath(os.path.join(folder, os.readlink(path)))
                if not (target + os.sep).startswith(source + os.sep):
                    os.unlink(path)
                    os.symlink(target, path)


def _is_left_out(path: str, code_dir: str) -> bool:
    """Tell whether something in a source directory is no part of the code."""
    if (code_dir + os.sep).startswith(path + os.sep):
        write_line(f"{path} is not copied: it holds the code directory")
        return True
    kind = stat.S_IFMT(os.lstat(path).st_mode)
    return (
        os.path.basename(path) in _LEFT_OUT
        or kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        or os.path.isfile(os.path.join(path, "pyvenv.cfg"))
    )


def _occupied(source: str, code_dir: str, setting: str, others: Iterable[str]) -> CodeError:
    """Return the error of a code directory that holds what no fetch put there."""
    names = sorted(others)
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return CodeError(
        f"the code directory {code_dir} already holds other code ({listed}), which is not what "
        f"{source} brings; expected it empty, or filled by an earlier fetch: empty it to run the "
        f"code from {source}, or name {code_dir} itself in {setting} to run what it holds"
    )


def _read_record(code_dir: str) -> Tuple[bool, Set[str]]:
    """Return whether a fetch filled the code directory, and the names of what it put there."""
    try:
        with open(os.path.join(code_dir, RECORD), encoding="utf-8") as file:
            entries = json.load(file)["entries"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False, set()
    if not isinstance(entries, list):
        return False, set()
    # These are deleted: nothing but names directly in the code directory may be among them.
    names = {str(entry) for entry in entries} - {os.curdir, os.pardir, ""}
    return True, {name for name in names if os.path.basename(name) == name}


def _write_record(code_dir: str, source: str, entries: Iterable[str]) -> None:
    """Record what a fetch puts into the code directory."""
    path = os.path.join(code_dir, _STAGING + ".json")
    data: Dict[str, Any] = {"source": source, "entries": sorted(entries)}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path, os.path.join(code_dir, RECORD))


def _remove(path: str) -> None:
    """Remove a file, a link or a directory, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil  # noqa: PLC0415

        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def main(arguments: List[str], report: Report) -> None:
    """Fetch what the arguments name; ``CodeError`` when that is impossible."""
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="fetch", description="Fetch the user's code.")
    parser.add_argument("--source", required=True)
    parser.add_argument("--code-dir", required=True, metavar="DIRECTORY")
    parser.add_argument("--setting", required=True)
    parser.add_argument("--region")
    options = parser.parse_args(arguments)
    fetch(options.source, options.code_dir, options.setting, options.region)
