"""Runs pip, passes its output on line by line, and turns a failure into its cause."""

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

from sagemaker_mxnet_toolkit.errors import RequirementsError
from sagemaker_mxnet_toolkit.failure import signal_name
from sagemaker_mxnet_toolkit.redaction import redact_text, secrets_in
from sagemaker_mxnet_toolkit.requirements import index_failure, package_index, requirement_file
from sagemaker_mxnet_toolkit.requirements.index_failure import IndexFailure
from sagemaker_mxnet_toolkit.requirements.installed import Kept
from sagemaker_mxnet_toolkit.requirements.requirement_file import Line, LineKind

_TAIL_LINES = 40
_CAUSES = 2
_STOP_SECONDS = 5.0

# The code directory is the working directory, and "python -m" would import pip's own modules, and
# the standard library, from there first. (CPython 3.11's -P is not in 3.8.)
_RUN_PIP = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0); import runpy; "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)


_INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
_LOG_VARIABLE = "PIP_LOG"


@dataclass(frozen=True)
class Installation:
    """What to install.

    Attributes:
        code_dir: working directory of the installer, and the package, where there is one.
        lines: what the requirements file asks for.
        package: whether the code directory is a package to install too.
        kept: what must not move.
    """

    code_dir: str
    lines: Tuple[Line, ...]
    package: bool
    kept: Tuple[Kept, ...]

    @property
    def hashed(self) -> bool:
        """Whether the file demands hashes, which a directory cannot have."""
        return any("--hash" in line.text or "--require-hashes" in line.text for line in self.lines)


def run(installation: Installation, environ: Mapping[str, str], deadline: float) -> None:
    """Install with pip.

    Args:
        installation: what.
        environ: pip's environment; its own variables and configuration files are honoured.
        deadline: when to give up (monotonic).

    Raises:
        RequirementsError: when pip fails or does not finish in time, with its last lines after the
            first line; when the index of ``CA_REPOSITORY_ARN`` cannot be had.
        OSError: when a file that pip needs cannot be written, or pip cannot be started.
    """
    variables = dict(environ)
    arn = variables.get(package_index.REPOSITORY_VARIABLE)
    if arn:
        # As sagemaker-training 5.1.4 does: instead of any other main index.
        variables["PIP_INDEX_URL"] = package_index.codeartifact_url(arn)
    text = requirement_file.render(installation.lines, installation.code_dir)
    secrets = secrets_in({**variables, "requirements": text})
    with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as private:
        credentials = package_index.Credentials()
        for name in _INDEX_VARIABLES:
            if name in variables:
                variables[name] = credentials.take_from(variables[name])
        file = _write(private, "requirements.txt", credentials.take_from(text))
        constraints = _write(
            private, "kept.txt", "".join(f"{each}\n" for each in installation.kept)
        )
        if credentials.netrc():
            netrc = package_index.existing_netrc(environ) + credentials.netrc()
            variables["NETRC"] = _write(private, "netrc", netrc)
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
            # Errors speak of the file that the user knows.
            return redact_text(line.replace(private + os.sep, ""), secrets)

        for targets in _targets(installation, file):
            argv = (sys.executable, "-c", _RUN_PIP, "install", "-c", constraints, *targets)
            status, tail = _stream(argv, variables, installation.code_dir, deadline, show)
            if status != 0:
                missing = index_failure.missing_package(tail)
                unread = index_failure.read_log(log, log_start, missing) if missing else ()
                causes = [show(_unread_cause(each)) for each in unread]
                raise _failure(status, tail, installation, causes)


def _targets(installation: Installation, file: str) -> Iterator[Tuple[str, ...]]:
    """Yield what each run of pip installs: all at once, so that it is resolved as a whole."""
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
    """Run a command; pass on each line of its output at once, as ``show`` makes it.

    Returns:
        Its return code and its last lines.

    Raises:
        RequirementsError: when the deadline passes. The command is ended; what it started belongs
            to this process group and ends with it.
    """
    tail: Deque[str] = deque(maxlen=_TAIL_LINES)

    def pass_on(line: bytes) -> None:
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
                    "installing takes too long; expected it to end within an hour: bring what it "
                    "needs in the image, or as wheels in the source directory\n" + "\n".join(tail)
                )
            block = os.read(process.stdout.fileno(), 65536)
            if not block:
                break
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                pass_on(line)
        if rest:
            pass_on(rest)
    return process.returncode, list(tail)


def _unread_cause(failure: IndexFailure) -> str:
    return f"the package index {failure.index} cannot be read: {failure.reason}"


def _failure(
    status: int, tail: List[str], installation: Installation, causes: Sequence[str]
) -> RequirementsError:
    """Return why pip failed: an index that it could not read, or else what it says itself."""
    prefix, heading = "ERROR: ", "The conflict is caused by:"
    errors = [_short(line[len(prefix) :]) for line in tail if line.startswith(prefix)]
    cause = "; ".join(errors[:2] or tail[-1:]) or f"pip ended with status {status}"
    if status < 0:
        cause = f"pip was ended by {signal_name(-status)}"
    elif causes:
        cause = (
            f"{'; '.join(causes[:_CAUSES])}; {errors[-1] if errors else cause}; expected an index "
            "that this host can reach and trusts: check PIP_INDEX_URL, and PIP_CERT where it has "
            "a certificate of your own"
        )
    elif errors and heading in tail:
        following = tail[tail.index(heading) + 1 :]
        conflict = [line.strip() for line in takewhile(lambda line: line[:1] == " ", following)]
        if len(conflict) > 3:  # the same again for each version that pip tried
            conflict = [*conflict[:2], "...", conflict[-1]]
        cause = (
            f"{errors[0]} {'; '.join(conflict)}. This environment keeps "
            f"{', '.join(str(each) for each in installation.kept)}: change what does not go with "
            "that; where a package needs another NumPy, name that one in requirements.txt, too"
        )
    what = "the package in the code directory" if installation.package else "requirements.txt"
    return RequirementsError("\n".join([f"{what} cannot be installed: {cause}", *tail]))


def _short(error: str) -> str:
    """Return an error of pip with the newest three of the versions that it lists.

    A hundred of them would leave room for nothing else in a job's FailureReason.
    """
    return re.sub(r"(\(from versions: )[^()]+, (([^(), ]+, ){2}[^(), ]+\))", r"\1..., \2", error)


def _write(folder: str, name: str, text: str) -> str:
    """Write a file that only this user can read; return its path."""
    path = os.path.join(folder, name)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    return path
