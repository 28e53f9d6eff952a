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
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from typing import Callable, Deque, Iterator, List, Mapping, Optional, Sequence, Tuple

from packaging.utils import canonicalize_name

from sagemaker_mxnet_toolkit.atomic_files import try_lock
from sagemaker_mxnet_toolkit.code.preparation import REQUIREMENTS as FILE
from sagemaker_mxnet_toolkit.code.preparation import is_package
from sagemaker_mxnet_toolkit.failure import RequirementsError
from sagemaker_mxnet_toolkit.processes.child_report import Report, progress, write_line
from sagemaker_mxnet_toolkit.redaction import redact_text, secrets_in
from sagemaker_mxnet_toolkit.requirements import installed, known, pip_failure, requirement_file
from sagemaker_mxnet_toolkit.requirements.installed import Kept
from sagemaker_mxnet_toolkit.requirements.requirement_file import Line, LineKind
from sagemaker_mxnet_toolkit.requirements.virtual_environment import pip_program
from sagemaker_mxnet_toolkit.settings.sources import without_waiting

DEADLINE = 3600.0
"""Maximum duration of an installation in seconds, including the wait for a concurrent one."""

REPOSITORY_VARIABLE = "CA_REPOSITORY_ARN"
"""Variable of sagemaker-training 5.1.4 with the CodeArtifact repository to install from."""

_POLL_SECONDS = 0.2
_STOP_SECONDS = 5.0
_IMPORT_SECONDS = 300.0
_TAIL_LINES = 40
_LOG_VARIABLE = "PIP_LOG"
_NUMPY_WHEELS = ("--only-binary", "numpy")
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
            run_pip(code_dir, lines, is_user_package, kept, environ, deadline)
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
        if not try_lock(fd):
            with progress(f"waiting for another installation into {sys.prefix}"):
                while not try_lock(fd):
                    if time.monotonic() > deadline:
                        raise RequirementsError(
                            f"another installation into {sys.prefix} did not finish within "
                            f"{DEADLINE:.0f} s; find the process that locks it (fuser, lsof)"
                        )
                    time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(fd)


def run_pip(
    code_dir: str,
    lines: Sequence[Line],
    package: bool,
    kept: Sequence[Kept],
    environ: Mapping[str, str],
    deadline: float,
) -> None:
    """Install with pip.

    Args:
        code_dir: working directory of pip, and the directory of the user's package, if any.
        lines: lines of the requirements file.
        package: whether the code directory is a package, which is installed, too.
        kept: packages that must not change.
        environ: pip's environment, including variables that configure pip.
        deadline: when pip is stopped (monotonic, seconds).

    Raises:
        RequirementsError: pip failed or timed out (its last lines follow the first line), or the
            index of ``CA_REPOSITORY_ARN`` is not available.
        OSError: a file that pip needs cannot be written, or pip cannot be started.
    """
    variables = dict(environ)
    arn = variables.get(REPOSITORY_VARIABLE)
    if arn:
        # It replaces any other main index, as in sagemaker-training 5.1.4.
        variables["PIP_INDEX_URL"] = _codeartifact_url(arn)
    text = requirement_file.render(lines, code_dir)
    secrets = secrets_in({**variables, "requirements": text})
    with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as private:
        file = _write(private, "requirements.txt", text)
        constraints = _write(private, "kept.txt", "".join(f"{each}\n" for each in kept))
        variables.update(
            PIP_NO_INPUT="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            PIP_ROOT_USER_ACTION="ignore",
            PYTHONUNBUFFERED="1",
            GIT_TERMINAL_PROMPT="0",
        )
        log = variables.setdefault(_LOG_VARIABLE, os.path.join(private, "pip.log"))
        log_start = os.path.getsize(log) if os.path.isfile(log) else 0

        def show(line: str) -> str:
            # Errors name the user's requirements.txt, not the copy.
            return redact_text(line.replace(private + os.sep, ""), secrets)

        for name, metadata in installed.without_numpy(kept).items():
            os.makedirs(os.path.join(private, "metadata", name))
            _write(os.path.join(private, "metadata", name), "METADATA", metadata)
        pip = (sys.executable, "-c", pip_program(os.path.join(private, "metadata")))
        options = ("-c", constraints, *_wheels_only(lines))
        for targets in _targets(lines, package, file):
            argv = (*pip, "install", *options, *targets)
            status, tail = _stream(argv, variables, code_dir, deadline, show)
            if status != 0:
                logged = [show(line) for line in pip_failure.read(log, log_start)]
                what = "the package in the code directory" if package else FILE
                raise pip_failure.failure(status, tail, logged, what, kept)


def _wheels_only(lines: Sequence[Line]) -> Tuple[str, ...]:
    """Return options that keep pip from building NumPy, unless the file names it.

    Building an older NumPy that has no wheel for this Python takes minutes and mostly fails.
    """
    names = [line.requirement.name for line in lines if line.requirement is not None]
    return () if any(canonicalize_name(name) == "numpy" for name in names) else _NUMPY_WHEELS


def _targets(lines: Sequence[Line], package: bool, file: str) -> Iterator[Tuple[str, ...]]:
    """Yield the arguments of each run of pip. One run resolves everything together, if possible."""
    listed = any(line.kind is not LineKind.NOTHING for line in lines)
    requirements = ("-r", file) if listed else ()
    directory = (".",) if package else ()
    # With hashes, pip requires one for everything, and a directory cannot have any.
    hashed = any("--hash" in line.text or "--require-hashes" in line.text for line in lines)
    if requirements and directory and hashed:
        yield requirements
        yield directory
    elif requirements or directory:
        yield (*requirements, *directory)


def _stream(
    argv: Sequence[str],
    variables: Mapping[str, str],
    directory: str,
    deadline: float,
    show: Callable[[str], str],
) -> Tuple[int, List[str]]:
    """Run a command; print each line of its output at once, converted by ``show``.

    Returns:
        Its return code and its last lines.

    Raises:
        RequirementsError: the command timed out. It is terminated; its children end with this
            process group.
    """
    tail: Deque[str] = deque(maxlen=_TAIL_LINES)

    def forward(line: bytes) -> None:
        text = show(line.decode("utf-8", "replace").rstrip("\r\n"))
        tail.append(text)
        print(text, flush=True)

    with subprocess.Popen(
        argv,
        cwd=directory,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        rest = b""
        while True:
            left = deadline - time.monotonic()
            if not select.select([process.stdout], [], [], max(0.0, left))[0]:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
                process.kill()
                raise RequirementsError(
                    "installing requirements.txt timed out after an hour: put the packages into "
                    "the image, or wheels into the source directory\n" + "\n".join(tail)
                )
            block = os.read(process.stdout.fileno(), 65536)
            if not block:
                break
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                forward(line)
        if rest:
            forward(rest)
    return process.returncode, list(tail)


def _write(folder: str, name: str, text: str) -> str:
    """Write a text file; return its path."""
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    return path


def _codeartifact_url(arn: str) -> str:
    """Return the index URL of a CodeArtifact repository, including an authorization token.

    Args:
        arn: value of ``REPOSITORY_VARIABLE``, which is also in ``os.environ``.

    Raises:
        RequirementsError: the ARN is malformed, or AWS does not answer or denies the request.
    """
    # Imports boto3, and creates directories below SAGEMAKER_BASE_DIR.
    from sagemaker_training import modules

    try:
        return str(modules._get_codeartifact_index())
    except Exception as error:  # it raises nothing narrower
        cause = error.__context__ or error
        raise RequirementsError(
            f"the CodeArtifact index of {REPOSITORY_VARIABLE}={arn} is not available: {cause}; "
            "expected arn:PARTITION:codeartifact:REGION:ACCOUNT:repository/DOMAIN/NAME, and a role "
            "that may codeartifact:GetAuthorizationToken, codeartifact:GetRepositoryEndpoint and "
            "sts:GetServiceBearerToken: correct it, or remove the variable to use pip's own index"
        ) from error


def main(arguments: List[str], report: Report) -> None:
    """Install the requirements of a code directory (see the module)."""
    parser = argparse.ArgumentParser(prog="install", description="Install requirements.")
    parser.add_argument("--code-dir", required=True, metavar="DIRECTORY")
    parser.add_argument("--entry-point", metavar="NAME")
    options = parser.parse_args(arguments)
    # An exit through SystemExit removes temporary files.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    install(options.code_dir, options.entry_point, dict(os.environ))
