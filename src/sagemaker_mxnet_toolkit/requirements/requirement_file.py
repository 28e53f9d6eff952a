"""Parses ``requirements.txt`` and checks it without an index.

The format is pip's (pip documentation, "Requirements File Format"). Only the program that installs
imports this module, since ``packaging`` takes about 30 ms to import.
"""

import enum
import os
import re
from dataclasses import dataclass
from typing import Callable, Iterable, List, Mapping, Optional, Set, Tuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from sagemaker_mxnet_toolkit.requirements.installed import Installed, Kept, allows, lookup

_COMMENT = re.compile(r"(^|\s+)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_LINE_OPTION = re.compile(r"\s+--?[a-zA-Z].*$")
# Options whose path is relative to the file, not to the working directory.
_PATH = re.compile(
    r"(?<!\S)(--(?:find-links|requirement|constraint)(?=[=\s])|-[frc])\s*=?\s*"
    r"(?P<quote>[\"']?)(?!file:|\S*://)(?P<path>[^\"'/~\s])"
)
_INDEX_OPTIONS = (
    *("-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--no-index"),
    *("--trusted-host", "--prefer-binary", "--only-binary", "--no-binary", "--pre"),
)


class LineKind(enum.Enum):
    """The kind of a line of a requirements file."""

    NOTHING = "nothing"
    """A blank line, a comment, or a requirement whose environment marker is false here."""
    PLAIN = "plain"
    """A package name, optionally with extras and versions."""
    INDEX = "index"
    """An option for the index, such as ``--extra-index-url``."""
    OTHER = "other"
    """Anything that only pip can evaluate: URLs, paths, hashes, other files, other options."""


@dataclass(frozen=True)
class Line:
    """One logical line.

    Attributes:
        number: number of its first physical line, from 1.
        text: the text without comments, with continuation lines joined and variables expanded.
        kind: the kind of the line.
        requirement: the requirement, if the line names a package.
    """

    number: int
    text: str
    kind: LineKind
    requirement: Optional[Requirement] = None


def parse(text: str, environ: Mapping[str, str]) -> Tuple[Line, ...]:
    """Parse a requirements file.

    Args:
        text: its content.
        environ: values for variables such as ``${TOKEN}``.
    """
    lines: List[Line] = []
    pending, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        start = start if pending else number
        if raw.endswith("\\") and not raw.lstrip().startswith("#"):
            pending += raw[:-1] + " "
            continue
        lines.append(_line(start, pending + raw, environ))
        pending = ""
    if pending:
        lines.append(_line(start, pending, environ))
    return tuple(lines)


def _line(number: int, raw: str, environ: Mapping[str, str]) -> Line:
    text = _COMMENT.sub("", raw).strip()
    text = _VARIABLE.sub(lambda match: environ.get(match[1]) or match[0], text)
    if not text:
        return Line(number, text, LineKind.NOTHING)
    if text.startswith("-"):
        index = re.split(r"[\s=]", text, maxsplit=1)[0] in _INDEX_OPTIONS
        return Line(number, text, LineKind.INDEX if index else LineKind.OTHER)
    plain = _LINE_OPTION.sub("", text)
    try:
        requirement = Requirement(plain)
    except InvalidRequirement:
        return Line(number, text, LineKind.OTHER)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return Line(number, text, LineKind.NOTHING)
    kind = LineKind.OTHER if requirement.url or plain != text else LineKind.PLAIN
    return Line(number, text, kind, requirement)


def render(lines: Iterable[Line], directory: str) -> str:
    """Return the text of a requirements file in another directory, with the same line numbers.

    Args:
        lines: its lines; missing numbers become blank lines.
        directory: the directory of the original, to which paths in options are relative. (Paths of
            packages are relative to the working directory of pip.)
    """
    rendered: List[str] = []
    for line in lines:
        rendered += [""] * (line.number - 1 - len(rendered))
        rendered.append(_with_absolute_paths(line.text, directory))
    return "\n".join(rendered) + "\n"


def _with_absolute_paths(text: str, directory: str) -> str:
    """Make the relative paths in a line of options absolute."""

    def absolute(match: "re.Match[str]") -> str:
        folder = os.path.join(directory, "")
        if not match["quote"]:
            folder = re.sub(r"([\s\"'\\])", r"\\\1", folder)
        return f"{match[1]} {match['quote']}{folder}{match['path']}"

    return _PATH.sub(absolute, text) if text.startswith("-") else text


def without(lines: Iterable[Line], drop: Callable[[str], bool]) -> Tuple[Line, ...]:
    """Return the lines, except those for packages that ``drop`` returns true for."""
    return tuple(
        line for line in lines if line.requirement is None or not drop(line.requirement.name)
    )


def satisfied(
    lines: Iterable[Line],
    find: Callable[[str], Optional[Installed]] = lookup,
    kept: Iterable[Kept] = (),
) -> bool:
    """Return whether all requirements of a file are installed, including dependencies.

    Args:
        lines: the file.
        find: looks up an installed package.
        kept: packages that do not change, whose dependencies are not checked.

    Returns:
        ``False`` also if only pip can decide.
    """
    leaves = {package.name for package in kept}
    seen: Set[str] = set()
    wanted: List[Requirement] = []
    for line in lines:
        if line.kind is LineKind.OTHER:
            return False
        if line.kind is LineKind.PLAIN and line.requirement is not None:
            wanted.append(line.requirement)
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        installed = find(requirement.name)
        if installed is None or requirement.url:
            return False
        if not allows(requirement.specifier, installed.version):
            return False
        if canonicalize_name(requirement.name) in leaves:
            continue
        for text in installed.requires:
            try:
                dependency = Requirement(text)
            except InvalidRequirement:
                return False
            extras = ("", *requirement.extras)
            if dependency.marker is None or any(
                dependency.marker.evaluate({"extra": extra}) for extra in extras
            ):
                wanted.append(dependency)
    return True


def find_conflict(lines: Iterable[Line], kept: Iterable[Kept]) -> Optional[Tuple[Line, Kept]]:
    """Return the first requirement that conflicts with a kept package, and that package.

    Conflicts that depend on the versions of an index are left to pip.
    """
    by_name = {package.name: package for package in kept}
    for line in lines:
        if line.requirement is None:
            continue
        package = by_name.get(canonicalize_name(line.requirement.name))
        if package is None:
            continue
        required, allowed = line.requirement.specifier, SpecifierSet(package.specifier)
        pairs = ((_only_version(allowed), required), (_only_version(required), allowed))
        for version, specifiers in pairs:
            if version is not None and not allows(specifiers, version):
                return line, package
    return None


def _only_version(specifiers: SpecifierSet) -> Optional[str]:
    """Return the version that ``==`` pins, or ``None``."""
    for specifier in specifiers:
        if specifier.operator in ("==", "===") and not specifier.version.endswith(".*"):
            return specifier.version
    return None
