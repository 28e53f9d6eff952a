"""Runs pip, forwards its output line by line, and finds the cause of a failure."""

import contextlib
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from typing import Callable, Deque, Iterator, List, Mapping, Sequence, Tuple

from packaging.utils import canonicalize_name

from sagemaker_mxnet_toolkit.errors import RequirementsError
from sagemaker_mxnet_toolkit.failure import signal_name
from sagemaker_mxnet_toolkit.redaction import redact_text, secrets_in
from sagemaker_mxnet_toolkit.requirements import pip_log, requirement_file
from sagemaker_mxnet_toolkit.requirements.installed import Kept, without_numpy
from sagemaker_mxnet_toolkit.requirements.pip_log import IndexFailure
from sagemaker_mxnet_toolkit.requirements.requirement_file import Line, LineKind
from sagemaker_mxnet_toolkit.requirements.virtual_environment import pip_program

REPOSITORY_VARIABLE = "CA_REPOSITORY_ARN"
"""Variable of sagemaker-training 5.1.4 with the CodeArtifact repository to install from."""

_TAIL_LINES = 40
_CAUSES = 2
_STOP_SECONDS = 5.0

_UNTRUSTED = re.compile(
    "certificate verify failed|certificate verification failed|SSL certificate problem", re.I
)
_LOG_VARIABLE = "PIP_LOG"
_NUMPY_WHEELS = ("--only-binary", "numpy")


@dataclass(frozen=True)
class Installation:
    """What to install.

    Attributes:
        code_dir: working directory of pip, and the directory of the user's package, if any.
        lines: lines of the requirements file.
        package: whether the code directory is a package, which is installed, too.
        kept: packages that must not change.
    """

    code_dir: str
    lines: Tuple[Line, ...]
    package: bool
    kept: Tuple[Kept, ...]

    @property
    def hashed(self) -> bool:
        """Whether the file requires hashes, which a directory cannot have."""
        return any("--hash" in line.text or "--require-hashes" in line.text for line in self.lines)


def run(installation: Installation, environ: Mapping[str, str], deadline: float) -> None:
    """Install with pip.

    Args:
        installation: what to install.
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
    text = requirement_file.render(installation.lines, installation.code_dir)
    secrets = secrets_in({**variables, "requirements": text})
    with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as private:
        file = _write(private, "requirements.txt", text)
        constraints = _write(
            private, "kept.txt", "".join(f"{each}\n" for each in installation.kept)
        )
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

        for name, metadata in without_numpy(installation.kept).items():
            os.makedirs(os.path.join(private, "metadata", name))
            _write(os.path.join(private, "metadata", name), "METADATA", metadata)
        pip = (sys.executable, "-c", pip_program(os.path.join(private, "metadata")))
        options = ("-c", constraints, *_wheels_only(installation))
        for targets in _targets(installation, file):
            argv = (*pip, "install", *options, *targets)
            status, tail = _stream(argv, variables, installation.code_dir, deadline, show)
            if status != 0:
                lines = [show(line) for line in pip_log.read(log, log_start)]
                raise _failure(status, tail, installation, lines)


def _wheels_only(installation: Installation) -> Tuple[str, ...]:
    """Return options that keep pip from building NumPy, unless the file names it.

    Building an older NumPy that has no wheel for this Python takes minutes and mostly fails.
    """
    names = [line.requirement.name for line in installation.lines if line.requirement is not None]
    return () if any(canonicalize_name(name) == "numpy" for name in names) else _NUMPY_WHEELS


def _targets(installation: Installation, file: str) -> Iterator[Tuple[str, ...]]:
    """Yield the arguments of each run of pip. One run resolves everything together, if possible."""
    listed = any(line.kind is not LineKind.NOTHING for line in installation.lines)
    requirements = ("-r", file) if listed else ()
    package = (".",) if installation.package else ()
    if requirements and package and installation.hashed:
        yield requirements
        yield package
    elif requirements or package:
        yield (*requirements, *package)


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


def _unread_cause(failure: IndexFailure) -> str:
    return f"the package index {failure.index} cannot be read: {failure.reason}"


def _failure(
    status: int, tail: List[str], installation: Installation, log: Sequence[str]
) -> RequirementsError:
    """Return the error of a failed run of pip, with its cause from pip's log or output.

    Args:
        status: pip's return code.
        tail: the last lines that it printed.
        installation: what it should install.
        log: lines of its log.
    """
    prefix, heading = "ERROR: ", "The conflict is caused by:"
    errors = [_short(line[len(prefix) :]) for line in tail if line.startswith(prefix)]
    errors = [error for error in errors if not error.startswith(pip_log.IGNORED)]
    cause = "; ".join(errors[:2]) or _diagnostic(tail) or f"pip exited with status {status}"
    command = pip_log.failed_command(log) if heading not in tail else None
    if command is not None:
        output = [f"output of {command.name}:", *command.output[-_TAIL_LINES:]]
        print("\n".join(output), flush=True)
        tail += output
        cause = "; ".join([f"{command.name} failed: {command.cause}", *errors[-1:]])
    missing = pip_log.missing_package(tail)
    unread = pip_log.index_failures(log, missing) if missing else ()
    if status < 0:
        cause = f"pip was killed by {signal_name(-status)}"
    elif unread:
        indexes = "; ".join(map(_unread_cause, unread[:_CAUSES]))
        cause = (
            f"{indexes}; {errors[-1] if errors else cause}; expected an index that this host can "
            "reach and trusts: check PIP_INDEX_URL, and PIP_CERT if it has a private certificate"
        )
    elif errors and heading in tail:
        following = tail[tail.index(heading) + 1 :]
        conflict = [line.strip() for line in takewhile(lambda line: line[:1] == " ", following)]
        if len(conflict) > 3:  # repeated for each version that pip tried
            conflict = [*conflict[:2], "...", conflict[-1]]
        cause = (
            f"{errors[0]} {'; '.join(conflict)}. This environment keeps "
            f"{', '.join(str(each) for each in installation.kept)}: change requirements that "
            "conflict with these; if a package needs a newer NumPy, or one without a wheel for "
            f"CPython {sys.version_info[0]}.{sys.version_info[1]}, add it to requirements.txt"
        )
    elif (other := pip_log.other_python(tail)) is not None:
        version, pythons = other
        cause += f"; {version} requires Python {pythons}, and this is {sys.version.split()[0]}"
    elif _UNTRUSTED.search(cause):
        cause += (
            "; expected a certificate that this host trusts: set PIP_CERT (for git: "
            "GIT_SSL_CAINFO) to the file of its certificate authority"
        )
    what = "the package in the code directory" if installation.package else "requirements.txt"
    return RequirementsError("\n".join([f"{what} cannot be installed: {cause}", *tail]))


def _diagnostic(tail: Sequence[str]) -> str:
    """Return the error that pip prints as a diagnostic without "ERROR:", else its last line.

    A diagnostic is a line that starts with a multiplication sign, followed by lines that start with
    box-drawing characters, and a blank line.
    """
    starts = [
        number for number, line in enumerate(tail) if line.startswith("\N{MULTIPLICATION SIGN} ")
    ]
    lines = takewhile(str.strip, tail[starts[-1] :]) if starts else tail[-1:]
    return " ".join(re.sub(r"^\W+ (?=[\w\[(])", "", line) for line in lines)


def _short(error: str) -> str:
    """Shorten the list of versions in an error of pip to the newest three.

    A job's FailureReason is at most 1,024 characters.
    """
    return re.sub(r"(\(from versions: )[^()]+, (([^(), ]+, ){2}[^(), ]+\))", r"\1..., \2", error)


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
