"""What a ``requirements.txt`` says, as far as it can be known without an index.

The format is pip's (pip documentation, "Requirements File Format"). Imported late, by the program
that installs: ``packaging`` takes some 30 ms to import.
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
_NESTED = re.compile(r"^(-r|--requirement|-c|--constraint)(?:\s*=?\s*)(.+)$")
_INDEX_OPTIONS = (
    *("-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--no-index"),
    *("--trusted-host", "--prefer-binary", "--only-binary", "--no-binary", "--pre"),
)


class LineKind(enum.Enum):
    """What a line of a requirements file asks for."""

    NOTHING = "nothing"
    """Blank, a comment, or a requirement whose environment marker is false here."""
    PLAIN = "plain"
    """A package by name, perhaps with extras and versions."""
    INDEX = "index"
    """An option that says where packages come from, not which."""
    OTHER = "other"
    """All that only pip can judge: URLs, paths, hashes, other files, other options."""


@dataclass(frozen=True)
class Line:
    """One logical line.

    Attributes:
        number: of its first physical line, from 1.
        text: without comments; continuation lines joined; variables such as ``${TOKEN}`` replaced.
        kind: what it asks for.
        requirement: the package by name, where there is one.
    """

    number: int
    text: str
    kind: LineKind
    requirement: Optional[Requirement] = None


def parse(text: str, environ: Mapping[str, str]) -> Tuple[Line, ...]:
    """Read the text of a requirements file.

    Args:
        text: its content.
        environ: values of variables in it.
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
    """Return lines as the text of a file that stands elsewhere, with their numbers kept.

    Args:
        lines: what it says; missing numbers become blank lines.
        directory: where the original stands: other requirements files are named relative to it.
            (Paths of packages are relative to the working directory in pip.)
    """
    rendered: List[str] = []
    for line in lines:
        rendered += [""] * (line.number - 1 - len(rendered))
        nested = _NESTED.match(line.text)
        if nested and "://" not in nested[2]:
            rendered.append(f"{nested[1]} {os.path.join(directory, nested[2])}")
        else:
            rendered.append(line.text)
    return "\n".join(rendered) + "\n"


def without(lines: Iterable[Line], drop: Callable[[str], bool]) -> Tuple[Line, ...]:
    """Return the lines but those for packages whose name ``drop`` takes."""
    return tuple(
        line for line in lines if line.requirement is None or not drop(line.requirement.name)
    )


def satisfied(
    lines: Iterable[Line],
    find: Callable[[str], Optional[Installed]] = lookup,
    kept: Iterable[Kept] = (),
) -> bool:
    """Tell whether all that a file asks for is installed, dependencies included.

    Args:
        lines: the file.
        find: looks an installed package up.
        kept: packages whose own dependencies are not looked at: they stay as they are.

    Returns:
        ``False`` also where only pip can know.
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


def impossible(lines: Iterable[Line], kept: Iterable[Kept]) -> Optional[Tuple[Line, Kept]]:
    """Return the first requirement that a kept package rules out, with that package.

    What depends on the versions an index has is left for pip to find out.
    """
    by_name = {package.name: package for package in kept}
    for line in lines:
        if line.requirement is None:
            continue
        package = by_name.get(canonicalize_name(line.requirement.name))
        if package is None:
            continue
        asked, allowed = line.requirement.specifier, SpecifierSet(package.specifier)
        # Where one side names one version, the other side says whether it may be that one.
        for one, other in ((_only_version(allowed), asked), (_only_version(asked), allowed)):
            if one is not None and not allows(other, one):
                return line, package
    return None


def _only_version(specifiers: SpecifierSet) -> Optional[str]:
    """Return the version that ``==`` pins, if there is one."""
    for specifier in specifiers:
        if specifier.operator in ("==", "===") and not specifier.version.endswith(".*"):
            return specifier.version
    return None
