"""Why pip could not read a package index, found in pip's log.

pip passes over an index that it cannot read, and ends with "Could not find a version that satisfies
the requirement" as if the package did not exist. The reason is in its log alone, in most cases
below the level that it prints (``pip/_internal/index/collector.py``, pip 22 to 26).
"""

import contextlib
import re
from dataclasses import dataclass
from typing import Iterable, Optional, Tuple

from packaging.utils import canonicalize_name

_MISSING = re.compile(r"No matching distribution found for ([A-Za-z0-9][A-Za-z0-9._-]*)")
_SKIPPED = re.compile(r"Could not fetch URL (\S+): (.*) - skipping")
_IGNORED = re.compile(r"The repository located at (\S+) is not a trusted or secure host")

# From the narrowest to the widest: the texts of pip, urllib3, requests and ssl hold one another.
_REASONS = (
    re.compile(r"CERTIFICATE_VERIFY_FAILED\] (certificate verify failed: .*?) \(_ssl"),
    re.compile(r"\[Errno -?\d+\] ([^'\")\]]+)"),
    re.compile(r"((?:Read|Connection to \S+) timed out)"),
    re.compile(r"(\d{3} (?:Client|Server) Error: .*?) for url"),
)
_NOT_FOUND = "404 Client Error"
_REASON_LIMIT = 200


@dataclass(frozen=True)
class IndexFailure:
    """A package index that pip could not read.

    Attributes:
        index: its URL, or its host where pip names no more.
        reason: why, such as ``Connection refused``.
    """

    index: str
    reason: str


def missing_package(output: Iterable[str]) -> Optional[str]:
    """Return the name of the package that pip did not find on any index, if that ended it."""
    for line in output:
        match = _MISSING.search(line)
        if match:
            return match[1]
    return None


def index_failures(log: Iterable[str], package: str) -> Tuple[IndexFailure, ...]:
    """Return the indexes that pip could not ask for a package.

    An index that answers "404 Not Found" is none of them: it has no such package.

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
                IndexFailure(ignored[1], "pip ignores a host without TLS that is not trusted")
            )
    return tuple(dict.fromkeys(found))


def _short_reason(text: str) -> str:
    for pattern in _REASONS:
        match = pattern.search(text)
        if match:
            return match[1].strip()
    return text[:_REASON_LIMIT]


def read_log(path: str, start: int, package: str) -> Tuple[IndexFailure, ...]:
    """Return what ``index_failures`` finds in a log file; nothing where it cannot be read.

    Args:
        path: the file.
        start: byte at which the lines of interest begin.
        package: name of the package.
    """
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        return index_failures(file, package)
    return ()
