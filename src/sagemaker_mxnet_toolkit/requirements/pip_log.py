"""Finds the cause of a failure in pip's log.

pip skips an index that it cannot read, and ends with "Could not find a version that satisfies the
requirement" as if the package did not exist. The reason is mostly logged below the level that pip
prints (``pip/_internal/index/collector.py``, pip 22 to 26). If there is a log, the output of builds
is only written there (``call_subprocess`` in ``pip/_internal/utils/subprocess.py``).
"""

import contextlib
import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

IGNORED = "Ignored the following "
"""How pip begins an error about versions that it did not consider. It is never why pip failed."""

_MISSING = re.compile(r"No matching distribution found for ([A-Za-z0-9][A-Za-z0-9._-]*)")
_MISSING_REQUIREMENT = re.compile(r"No matching distribution found for (.*?)(?: \(from .*)?$")
_OTHER_PYTHON = re.compile(f"{IGNORED}versions that require a different python version: (.*)")
_REQUIRES_PYTHON = re.compile(r"(\S+) Requires-Python ([^;]+)")
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
_NOT_FOUND = "404 Client Error"
_REASON_LIMIT = 200


@dataclass(frozen=True)
class IndexFailure:
    """A package index that pip could not read.

    Attributes:
        index: its URL, or only its host if that is all that pip logs.
        reason: why, such as ``Connection refused``.
    """

    index: str
    reason: str


def missing_package(output: Iterable[str]) -> Optional[str]:
    """Return the name of the package that pip did not find on any index, or ``None``."""
    for line in output:
        match = _MISSING.search(line)
        if match:
            return match[1]
    return None


def other_python(output: Sequence[str]) -> Optional[Tuple[str, str]]:
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


def index_failures(log: Iterable[str], package: str) -> Tuple[IndexFailure, ...]:
    """Return the indexes that pip could not query for a package.

    "404 Not Found" is not such a failure: the index does not have the package.

    Args:
        log: lines of pip's log, or of its output.
        package: name of the package.
    """
    page = f"/{canonicalize_name(package)}/"
    found = []
    for line in log:
        skipped, ignored = _SKIPPED.search(line), _IGNORED.search(line)
        if skipped and skipped[1].endswith(page) and _NOT_FOUND not in skipped[2]:
            index = skipped[1][: -len(page) + 1]
            found.append(IndexFailure(index, _short_reason(skipped[2])))
        elif ignored:
            found.append(
                IndexFailure(ignored[1], "pip ignores a host without TLS unless it is trusted")
            )
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
