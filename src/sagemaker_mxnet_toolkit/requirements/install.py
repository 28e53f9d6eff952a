"""Installs the requirements of the user's code without changing packages that MXNet needs.

pip installs ``requirements.txt``, and the user's package if the entry point is in one, under
constraints: MXNet, this toolkit and its dependencies keep their versions. NumPy keeps its version
unless a package needs an older one or the file names another one that MXNet can import. Conflicts
that can be found without an index are reported before anything is installed. If nothing is missing,
neither pip nor the network is used.

A module for ``processes.program``, with the arguments ``--code-dir DIRECTORY`` and optionally
``--entry-point NAME``.
"""

import argparse
import codecs
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from typing import Iterator, List, Mapping, Optional, Sequence

from sagemaker_mxnet_toolkit.code.preparation import REQUIREMENTS as FILE
from sagemaker_mxnet_toolkit.code.preparation import is_package
from sagemaker_mxnet_toolkit.errors import RequirementsError
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_toolkit.progress import progress, write_line
from sagemaker_mxnet_toolkit.requirements import installed, installer, known, requirement_file
from sagemaker_mxnet_toolkit.settings.sources import without_waiting

DEADLINE = 3600.0
"""Maximum duration of an installation in seconds, including the wait for a concurrent one."""

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
        entry_point: the entry point, relative to it, if there is one.
        environ: pip's environment.

    Raises:
        RequirementsError: a requirement cannot be installed, or would break MXNet.
    """
    try:
        changed = _install(code_dir, entry_point, environ)
    except OSError as error:
        raise RequirementsError(
            f"{FILE} cannot be installed: {error}; expected a writable temporary directory "
            "(TMPDIR, or /tmp) with enough space, and pip in this Python"
        ) from error
    if changed:
        _check_mxnet(changed, environ)


def _install(code_dir: str, entry_point: Optional[str], environ: Mapping[str, str]) -> List[str]:
    """Install what is missing; return the changed packages, if MXNet is installed."""
    deadline = time.monotonic() + DEADLINE
    is_user_package = is_package(code_dir, entry_point)
    lines = requirement_file.parse(_read(os.path.join(code_dir, FILE)), environ)
    with _known_problems(known.remarks(lines)), _lock(deadline):
        required = [line.requirement for line in lines if line.requirement is not None]
        builds = installed.mxnet_builds()
        numpy_range = installed.importable_numpy(environ)
        kept = installed.kept_packages(required, numpy_range, installed.lookup, builds)
        conflict = requirement_file.find_conflict(lines, kept)
        if conflict is not None:
            line, package = conflict
            raise RequirementsError(
                f"{line.requirement} ({FILE}, line {line.number}) cannot be installed: this "
                f"environment keeps {package}, {package.reason}; expected a version that satisfies "
                "this: change or remove the line, or use an image with that version"
            )
        if builds:
            # The installed MXNet satisfies the file. pip would install another build next to it, or
            # reject a NumPy that works because of the "numpy<2" in MXNet's metadata.
            lines = requirement_file.without(lines, installed.is_mxnet)
        if not is_user_package and requirement_file.satisfied(lines, installed.lookup, kept):
            write_line(f"{FILE}: already satisfied")
            return []
        before = installed.versions()
        with progress("installing the package" if is_user_package else f"installing {FILE}"):
            request = installer.Installation(code_dir, lines, is_user_package, kept)
            installer.run(request, environ, deadline)
        changed = installed.changes(before, installed.versions())
    return changed if builds else []


@contextlib.contextmanager
def _known_problems(remarks: Sequence[str]) -> Iterator[None]:
    """Log remarks about libraries in the file, and add them to the message of a failure."""
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
    """Import MXNet in a new interpreter."""
    argv = (sys.executable, "-c", _IMPORT_MXNET)
    with progress("checking that mxnet can still be imported"):
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
                f"importing mxnet after installing {FILE} timed out after {_IMPORT_SECONDS:.0f} s; "
                f"changed packages: {', '.join(changed)}; expected 1 to 2 s: pin their old versions"
            ) from error
    if done.returncode == 0:
        return
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    cause = lines[-1] if lines else f"exit status {done.returncode}"
    raise RequirementsError(
        f"mxnet cannot be imported after installing {FILE}: {cause}; "
        f"changed packages: {', '.join(changed)}; expected versions that work with MXNet: pin the "
        "old versions, or remove what requires the new ones\n" + "\n".join(lines[-_TAIL_LINES:])
    )


def _read(path: str) -> str:
    """Return the text of the requirements file; empty if it does not exist."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
            data = file.read()
        # PowerShell's "pip freeze > requirements.txt" writes UTF-16, which pip reads, too.
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if utf_16:
            return data.decode("utf-16", "replace")
        return data.decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RequirementsError(
            f"{path} cannot be read: {error.strerror}; expected a text file in pip's "
            "requirements format: correct or remove it"
        ) from error


@contextlib.contextmanager
def _lock(deadline: float) -> Iterator[None]:
    """Wait for other installations into this Python, which hosts of a local run share."""
    fd = os.open(sys.prefix, os.O_RDONLY)
    try:
        if not _locked(fd):
            with progress(f"waiting for another installation into {sys.prefix}"):
                while not _locked(fd):
                    if time.monotonic() > deadline:
                        raise RequirementsError(
                            f"another installation into {sys.prefix} did not finish within "
                            f"{DEADLINE:.0f} s; find the process that locks it (fuser, lsof)"
                        )
                    time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """Try to lock an open directory; return whether that succeeded."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # NFS cannot lock directories
        return True
    return True


def main(arguments: List[str], report: Report) -> None:
    """Install the requirements of a code directory (see the module)."""
    parser = argparse.ArgumentParser(prog="install", description="Install requirements.")
    parser.add_argument("--code-dir", required=True, metavar="DIRECTORY")
    parser.add_argument("--entry-point", metavar="NAME")
    options = parser.parse_args(arguments)
    # An exit through SystemExit removes temporary files.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    install(options.code_dir, options.entry_point, dict(os.environ))
