"""Runs pip (or uv), shows what it says while it says it, and keeps the end of that."""

import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from typing import Callable, Deque, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.errors import RequirementsError
from sagemaker_mxnet_toolkit.failure import signal_name
from sagemaker_mxnet_toolkit.progress import say
from sagemaker_mxnet_toolkit.redaction import redact_text, secrets_in
from sagemaker_mxnet_toolkit.requirements import package_index, requirement_file
from sagemaker_mxnet_toolkit.requirements.installed import Kept
from sagemaker_mxnet_toolkit.requirements.requirement_file import Line, LineKind

_TAIL_LINES = 40
_STOP_SECONDS = 5.0

# The code directory is the working directory, and "python -m" would import pip's own modules, and
# the standard library, from there first. (CPython 3.11's -P is not in 3.8.)
_RUN_PIP = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0); import runpy; "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)


_INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")

# What says nothing about which packages pip takes from where (pip documentation, "Configuration").
_PIP_MANNERS = frozenset(
    {"PIP_CONFIG_FILE", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES", "PIP_CACHE_DIR", "PIP_NO_CACHE_DIR"}
    | {"PIP_NO_INPUT", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_ROOT_USER_ACTION", "PIP_INDEX_URL"}
)
_PIP_FILES = (
    *("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf"),
    os.path.join(sys.prefix, "pip.conf"),
)
_UV_MANNERS = frozenset({"UV_CACHE_DIR", "UV_NO_CACHE", "UV_HTTP_TIMEOUT", "UV_SYSTEM_CERTS"})


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

    @property
    def plain(self) -> bool:
        """Whether there are only packages by name, about which all installers agree."""
        kinds = {line.kind for line in self.lines}
        return not self.package and kinds <= {LineKind.PLAIN, LineKind.NOTHING}


def run(installation: Installation, environ: Mapping[str, str], deadline: float) -> None:
    """Install, with uv where it does what pip would do, and else with pip.

    Args:
        installation: what.
        environ: the installer's environment; pip's own variables and files are honoured.
        deadline: when to give up (monotonic).

    Raises:
        RequirementsError: when pip fails or does not finish in time, with its last lines after the
            first line; when the index of ``CA_REPOSITORY_ARN`` cannot be had.
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

        def show(line: str) -> str:
            # Errors speak of the file that the user knows.
            return redact_text(line.replace(private + os.sep, ""), secrets)

        uv = _uv(installation, variables)
        if uv:
            arguments = ("--python", sys.executable, "--compile-bytecode", "-c", constraints)
            status, _ = _stream(
                (uv, "pip", "install", *arguments, "-r", file),
                _uv_variables(variables),
                installation.code_dir,
                deadline,
                show,
            )
            if status == 0:
                return
            say("uv cannot install this; pip decides")
        for targets in _targets(installation, file):
            argv = (sys.executable, "-c", _RUN_PIP, "install", "-c", constraints, *targets)
            status, tail = _stream(argv, variables, installation.code_dir, deadline, show)
            if status != 0:
                raise _failure(status, tail, installation)


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


def _uv(installation: Installation, variables: Mapping[str, str]) -> Optional[str]:
    """Return the path of uv, if there is one and it would install the very same.

    It reads none of pip's configuration and never falls back to the user's own site directory
    (uv documentation, "Compatibility with pip"), so either may say nothing that it would miss.
    """
    search = os.pathsep.join([os.path.dirname(sys.executable), variables.get("PATH", os.defpath)])
    uv = shutil.which("uv", path=search)
    configured = {name for name in variables if name.startswith("PIP_")} - _PIP_MANNERS
    if uv is None or not installation.plain or configured:
        return None
    files = (variables.get("PIP_CONFIG_FILE", ""), *_PIP_FILES)
    # pip reads none of them when its variable says os.devnull (pip documentation, same place).
    if files[0] != os.devnull and any(os.path.exists(os.path.expanduser(each)) for each in files):
        return None
    return uv if os.access(sysconfig.get_path("purelib"), os.W_OK) else None


def _uv_variables(variables: Mapping[str, str]) -> Dict[str, str]:
    """Return the environment in which uv asks the index that pip would ask, and no other."""
    kept = {
        name: value
        for name, value in variables.items()
        if not name.startswith("UV_") or name in _UV_MANNERS
    }
    kept["UV_NO_CONFIG"] = "1"
    if "PIP_INDEX_URL" in variables:
        kept["UV_DEFAULT_INDEX"] = variables["PIP_INDEX_URL"]
    return kept


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


def _failure(status: int, tail: List[str], installation: Installation) -> RequirementsError:
    """Return pip's failure, in its own words."""
    prefix, heading = "ERROR: ", "The conflict is caused by:"
    errors = [_short(line[len(prefix) :]) for line in tail if line.startswith(prefix)]
    cause = "; ".join(errors[:2] or tail[-1:]) or f"pip ended with status {status}"
    if status < 0:
        cause = f"pip was ended by {signal_name(-status)}"
    elif errors and heading in tail:
        following = tail[tail.index(heading) + 1 :]
        conflict = [line.strip() for line in takewhile(lambda line: line[:1] == " ", following)]
        if len(conflict) > 3:  # the same again for each version that pip tried
            conflict = [*conflict[:2], "...", conflict[-1]]
        cause = (
            f"{errors[0]} {'; '.join(conflict)}. The job keeps "
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
