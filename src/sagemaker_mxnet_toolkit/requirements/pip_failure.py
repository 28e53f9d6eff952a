"""Finds the cause of a failure of pip in its output and its log.

pip skips an index that it cannot read, and ends with "Could not find a version that satisfies the
requirement" as if the package did not exist. The reason is mostly logged below the level that pip
prints (``pip/_internal/index/collector.py``, pip 22 to 26). If there is a log, the output of builds
is only written there (``call_subprocess`` in ``pip/_internal/utils/subprocess.py``).
"""

import contextlib
import re
import sys
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sagemaker_mxnet_toolkit.failure import RequirementsError, signal_name
from sagemaker_mxnet_toolkit.requirements.installed import Kept

_TAIL_LINES = 40
_CAUSES = 2

# How pip begins an error about versions that it did not consider. It is never why pip failed.
_IGNORED_VERSIONS = "Ignored the following "

_MISSING = re.compile(r"No matching distribution found for ([A-Za-z0-9][A-Za-z0-9._-]*)")
_MISSING_REQUIREMENT = re.compile(r"No matching distribution found for (.*?)(?: \(from .*)?$")
_OTHER_PYTHON = re.compile(
    f"{_IGNORED_VERSIONS}versions that require a different python version: (.*)"
)
_REQUIRES_PYTHON = re.compile(r"(\S+) Requires-Python ([^;]+)")
_INVALID = "ERROR: Invalid requirement: "
_HINT = "Hint: "
_FROM_LINE = re.compile(r" \(from line (\d+) of (.*)\)$")
_SKIPPED = re.compile(r"Could not fetch URL (\S+): (.*) - skipping")
_IGNORED = re.compile(r"The repository located at (\S+) is not a trusted or secure host")

# From specific to general, since messages of pip, urllib3, requests and ssl are nested.
_REASONS = (
    re.compile(r"CERTIFICATE_VERIFY_FAILED\] (certificate verify failed: .*?) \(_ssl"),
    re.compile(r"\[Errno -?\d+\] ([^'\")\]]+)"),
    re.compile(r"((?:Read|Connection to \S+) timed out)"),
    re.compile(r"(\d{3} (?:Client|Server) Error: .*?) for url"),
)
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} ?")
_EXITED = re.compile(r"\s*ERROR: (?:\[present-rich\] )?(.*) exited with -?\d+$")
_ERROR = re.compile(r"\b(fatal|(?i:error)): ")
_COMMAND = re.compile(r"\b[Cc]ommand '?\[?'.*(failed|returned non-zero)")
_UNTRUSTED = re.compile(
    "certificate verify failed|certificate verification failed|SSL certificate problem", re.I
)
_NOT_FOUND = "404 Client Error"
_REASON_LIMIT = 200


def failure(
    status: int, output: Sequence[str], log: Sequence[str], what: str, kept: Iterable[Kept]
) -> RequirementsError:
    """Return the error of a failed run of pip, with its cause from pip's output or log.

    Args:
        status: pip's return code.
        output: the last lines that it printed.
        log: the lines of its log, as ``read`` returns them.
        what: what was not installed.
        kept: packages that must not change.
    """
    tail = list(output)
    prefix, heading = "ERROR: ", "The conflict is caused by:"
    errors = [_short(line[len(prefix) :]) for line in tail if line.startswith(prefix)]
    errors = [error for error in errors if not error.startswith(_IGNORED_VERSIONS)]
    cause = (
        _invalid_line(tail)
        or "; ".join(errors[:2])
        or _diagnostic(tail)
        or f"pip exited with status {status}"
    )
    command = failed_command(log) if heading not in tail else None
    if command is not None:
        printed = [f"output of {command.name}:", *command.output[-_TAIL_LINES:]]
        print("\n".join(printed), flush=True)
        tail += printed
        cause = "; ".join([f"{command.name} failed: {command.cause}", *errors[-1:]])
    missing = _missing_package(tail)
    unread = _unread_indexes(log, missing) if missing else ()
    if status < 0:
        cause = f"pip was killed by {signal_name(-status)}"
    elif unread:
        cause = (
            f"{'; '.join(unread[:_CAUSES])}; {errors[-1] if errors else cause}; expected an index "
            "that this host can reach and trusts: check PIP_INDEX_URL, and PIP_CERT if it has a "
            "private certificate"
        )
    elif errors and heading in tail:
        following = tail[tail.index(heading) + 1 :]
        conflict = [line.strip() for line in takewhile(lambda line: line[:1] == " ", following)]
        if len(conflict) > 3:  # repeated for each version that pip tried
            conflict = [*conflict[:2], "...", conflict[-1]]
        cause = (
            f"{errors[0]} {'; '.join(conflict)}. This environment keeps "
            f"{', '.join(map(str, kept))}: change requirements that conflict with these; if a "
            "package needs a newer NumPy, or one without a wheel for "
            f"CPython {sys.version_info[0]}.{sys.version_info[1]}, add it to requirements.txt"
        )
    elif (other := _other_python(tail)) is not None:
        version, pythons = other
        cause += f"; {version} requires Python {pythons}, and this is {sys.version.split()[0]}"
    elif _UNTRUSTED.search(cause):
        cause += (
            "; expected a certificate that this host trusts: set PIP_CERT (for git: "
            "GIT_SSL_CAINFO) to the file of its certificate authority"
        )
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


def _invalid_line(tail: Sequence[str]) -> str:
    """Return pip's error about a line that it cannot parse, with the line's number and pip's hint.

    The number follows the error in the same line, or since pip 24.1 in a later one.
    """
    found = list(dropwhile(lambda line: not line.startswith(_INVALID), tail))
    if not found:
        return ""
    error = _FROM_LINE.sub("", found[0][len("ERROR: ") :])
    places = [f"({match[2]}, line {match[1]})" for match in map(_FROM_LINE.search, found) if match]
    hints = [line[len(_HINT) :] for line in found if line.startswith(_HINT)]
    return "; ".join([" ".join([error, *places[:1]]), *hints[:1]])


def _short(error: str) -> str:
    """Shorten the list of versions in an error of pip to the newest three.

    A job's FailureReason is at most 1,024 characters.
    """
    return re.sub(r"(\(from versions: )[^()]+, (([^(), ]+, ){2}[^(), ]+\))", r"\1..., \2", error)


def _missing_package(output: Iterable[str]) -> Optional[str]:
    """Return the name of the package that pip did not find on any index, or ``None``."""
    for line in output:
        match = _MISSING.search(line)
        if match:
            return match[1]
    return None


def _other_python(output: Sequence[str]) -> Optional[Tuple[str, str]]:
    """Return the newest version that was asked for and is there for another Python, if any.

    Returns:
        The package with that version, and the versions of Python that it requires.
    """
    for asked in filter(None, map(_MISSING_REQUIREMENT.search, output)):
        for ignored in filter(None, map(_OTHER_PYTHON.search, output)):
            with contextlib.suppress(ValueError):  # what is not a requirement, or not a version
                requirement = Requirement(asked[1])
                pythons = dict(_REQUIRES_PYTHON.findall(ignored[1]))
                fitting = sorted(requirement.specifier.filter(pythons), key=Version)
                if fitting:
                    return f"{requirement.name} {fitting[-1]}", pythons[fitting[-1]]
    return None


def _unread_indexes(log: Iterable[str], package: str) -> Tuple[str, ...]:
    """Return why pip could not query indexes for a package.

    "404 Not Found" is not such a failure: the index does not have the package.
    """
    page = f"/{canonicalize_name(package)}/"
    found = []
    for line in log:
        skipped, ignored = _SKIPPED.search(line), _IGNORED.search(line)
        if skipped and skipped[1].endswith(page) and _NOT_FOUND not in skipped[2]:
            index, reason = skipped[1][: -len(page) + 1], _short_reason(skipped[2])
        elif ignored:
            index, reason = ignored[1], "pip ignores a host without TLS unless it is trusted"
        else:
            continue
        found.append(f"the package index {index} cannot be read: {reason}")
    return tuple(dict.fromkeys(found))


def _short_reason(text: str) -> str:
    for pattern in _REASONS:
        match = pattern.search(text)
        if match:
            return match[1].strip()
    return text[:_REASON_LIMIT]


@dataclass(frozen=True)
class FailedCommand:
    """A failed program that pip ran, such as a build or git.

    Attributes:
        name: pip's name of the step, such as ``Getting requirements to build wheel``.
        output: the lines that it printed.
    """

    name: str
    output: Tuple[str, ...]

    @property
    def cause(self) -> str:
        """The line of its output with the cause."""
        lines = [line.strip() for line in self.output if line.strip()]
        # A build ends with the exit status of the compiler, which has printed its error before.
        errors = [line for line in lines if _ERROR.search(line) and not _COMMAND.search(line)]
        return (errors or lines[-1:] or ["(no output)"])[0]


def failed_command(log: Sequence[str]) -> Optional[FailedCommand]:
    """Return the last program of pip that failed, or ``None``.

    Args:
        log: lines of pip's log, as ``read`` returns them.
    """
    ends: Dict[str, int] = {}
    for number in range(len(log) - 1, -1, -1):
        match = _EXITED.match(log[number])
        if match is not None:
            ends[f"Running command {match[1]}"] = number  # pip may log it twice
        elif log[number].strip() in ends:
            name = log[number].strip()
            output = tuple(log[number + 1 : ends[name]])
            return FailedCommand(name[len("Running command ") :], output)
    return None


def read(path: str, start: int) -> List[str]:
    """Return the lines of a log without timestamps; empty if it cannot be read.

    Args:
        path: the file.
        start: offset of the first line in bytes.
    """
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        return [_TIME.sub("", line.rstrip("\n")) for line in file]
    return []
