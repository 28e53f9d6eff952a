"""Installs what the user's code requires, without moving what this environment itself needs.

``requirements.txt``, and the package itself where the entry point is one, are installed by pip
under constraints: MXNet, this toolkit and what it depends on stay as they are, NumPy too unless the
file names another version that MXNet can import. A conflict that needs no index to be seen is
reported before anything is installed. Where nothing is missing, neither pip nor network is used.

A module for ``processes.program``, with the arguments ``--code-dir DIRECTORY`` and, where there is
an entry point, ``--entry-point NAME``.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from typing import Iterator, List, Mapping, Optional, Sequence

from sagemaker_mxnet_toolkit.code.preparation import REQUIREMENTS as FILE
from sagemaker_mxnet_toolkit.code.preparation import is_package
from sagemaker_mxnet_toolkit.errors import RequirementsError
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_toolkit.progress import progress, write_line
from sagemaker_mxnet_toolkit.requirements import installed, installer, known, requirement_file

DEADLINE = 3600.0
"""Seconds that an installation may take, waiting for another one in the same Python included."""

_POLL_SECONDS = 0.2
_IMPORT_SECONDS = 300.0
_TAIL_LINES = 40
_IMPORT_MXNET = (
    "from sagemaker_mxnet_toolkit import compatibility\ncompatibility.install()\nimport mxnet"
)


def install(code_dir: str, entry_point: Optional[str], environ: Mapping[str, str]) -> None:
    """Install what is missing, and check that MXNet can be imported afterwards.

    Args:
        code_dir: the code directory; paths in ``requirements.txt`` are relative to it.
        entry_point: relative to it, if there is one; a package is installed itself.
        environ: pip's environment.

    Raises:
        RequirementsError: when something cannot be installed, or MXNet could not be imported with
            it, or a file that is needed for it cannot be written.
    """
    try:
        changed = _install(code_dir, entry_point, environ)
    except OSError as error:
        raise RequirementsError(
            f"{FILE} cannot be installed: {error}; expected a temporary directory "
            "(TMPDIR, or /tmp) that can be written to and has space, and pip in this Python"
        ) from error
    if changed:
        _check_mxnet(changed, environ)


def _install(code_dir: str, entry_point: Optional[str], environ: Mapping[str, str]) -> List[str]:
    """Install what is missing; return what changed, if MXNet is installed."""
    deadline = time.monotonic() + DEADLINE
    package = is_package(code_dir, entry_point)
    lines = requirement_file.parse(_read(os.path.join(code_dir, FILE)), environ)
    with _remarking(known.remarks(lines)), _one_at_a_time(deadline):
        asked = [line.requirement for line in lines if line.requirement is not None]
        builds = installed.mxnet_builds()
        numpy_range = installed.importable_numpy(environ)
        kept = installed.kept_packages(asked, numpy_range, installed.lookup, builds)
        conflict = requirement_file.impossible(lines, kept)
        if conflict is not None:
            line, held = conflict
            raise RequirementsError(
                f"{line.requirement} ({FILE}, line {line.number}) cannot be installed: this "
                f"environment keeps {held}, {held.reason}; expected a version within that: change "
                "the line or remove it, or use an image that brings what it asks for"
            )
        if builds:
            # MXNet is here, in a version that the file takes. Its line goes: pip would add another
            # build of it, or hold its metadata's "numpy<2" against a NumPy that works.
            lines = requirement_file.without(lines, installed.is_mxnet)
        if not package and requirement_file.satisfied(lines, installed.lookup, kept):
            write_line(f"{FILE}: everything is installed already")
            return []
        before = installed.versions()
        with progress("installing the package" if package else f"installing {FILE}"):
            request = installer.Installation(code_dir, lines, package, kept)
            installer.run(request, environ, deadline)
        changed = installed.changes(before, installed.versions())
    return changed if builds else []


@contextlib.contextmanager
def _remarking(remarks: Sequence[str]) -> Iterator[None]:
    """Say what is known of the libraries in the file: in the log, and behind a failure's cause."""
    for remark in remarks:
        write_line(f"{FILE}: {remark}")
    try:
        yield
    except RequirementsError as error:
        if not remarks:
            raise
        cause, *rest = str(error).splitlines()
        raise RequirementsError("\n".join(["; ".join([cause, *remarks]), *rest])) from error


def _check_mxnet(changed: List[str], environ: Mapping[str, str]) -> None:
    """Import MXNet in a fresh interpreter, as the roles will."""
    argv = (sys.executable, "-c", _IMPORT_MXNET)
    with progress("importing mxnet, now that packages changed"):
        try:
            done = subprocess.run(
                argv,
                env=environ,
                cwd="/",
                capture_output=True,
                check=False,
                timeout=_IMPORT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise RequirementsError(
                f"importing mxnet after installing {FILE} does not end within "
                f"{_IMPORT_SECONDS:.0f} s; changed: {', '.join(changed)}; expected 1 to 2 s: "
                "pin those to what they were"
            ) from error
    if done.returncode == 0:
        return
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    cause = lines[-1] if lines else f"exit status {done.returncode}"
    raise RequirementsError(
        f"mxnet cannot be imported any more after installing {FILE}: {cause}; "
        f"changed: {', '.join(changed)}; expected packages that go with it: pin those to what they "
        "were, or remove what asks for them\n" + "\n".join(lines[-_TAIL_LINES:])
    )


def _read(path: str) -> str:
    """Return the text of the requirements file; a package may do without."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RequirementsError(
            f"{path} cannot be read: {error.strerror}; expected a text file in pip's "
            "requirements format: mend it at the source, or remove it"
        ) from error


@contextlib.contextmanager
def _one_at_a_time(deadline: float) -> Iterator[None]:
    """Wait until nobody else installs into this Python: hosts of a local run share it."""
    python = hashlib.sha256(os.fsencode(sys.prefix)).hexdigest()[:12]
    path = os.path.join(_private_directory(), f"install-{python}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(fd):
            with progress(f"waiting for another installation into {sys.prefix}"):
                while not _locked(fd):
                    if time.monotonic() > deadline:
                        raise RequirementsError(
                            f"another installation into {sys.prefix} does not end; expected it to "
                            f"within {DEADLINE:.0f} s: see who holds {path} (fuser, lsof)"
                        )
                    time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(fd)


def _private_directory() -> str:
    """Return this user's directory for locks, below the temporary directory.

    In the temporary directory itself, any local user could make a file of the lock's name first,
    and hold the lock, or keep it from being opened.

    Raises:
        RequirementsError: when there is something else by its name, made by whomever.
    """
    path = os.path.join(tempfile.gettempdir(), f"sagemaker-mxnet-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    private = stat.S_ISDIR(found.st_mode) and found.st_mode & 0o077 == 0
    if not private or found.st_uid != os.geteuid():
        raise RequirementsError(
            f"{path} is not safe to use: {stat.filemode(found.st_mode)}, owned by user "
            f"{found.st_uid}; expected a directory of user {os.geteuid()} that nobody else can "
            "enter (mode 0700): remove it, or set TMPDIR to another temporary directory"
        )
    return path


def _locked(fd: int) -> bool:
    """Try to take the lock of an open file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: List[str], report: Report) -> None:
    """Install what a code directory requires; ``RequirementsError`` when that is impossible."""
    parser = argparse.ArgumentParser(prog="install", description="Install requirements.")
    parser.add_argument("--code-dir", required=True, metavar="DIRECTORY")
    parser.add_argument("--entry-point", metavar="NAME")
    options = parser.parse_args(arguments)
    # Files with credentials in them are removed on the way out, also when the job is stopped.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    install(options.code_dir, options.entry_point, dict(os.environ))
