"""What is installed in this interpreter, and what of it an installation must not move."""

import importlib
import importlib.metadata
import pathlib
import re
import site
import sys
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from sagemaker_mxnet_toolkit import compatibility

TOOLKIT = "sagemaker-mxnet-training"

_MXNET = re.compile(r"mxnet(-(cu\d+(mkl)?|mkl|native))?")


@dataclass(frozen=True)
class Installed:
    """An installed package.

    Attributes:
        version: its version.
        requires: its dependencies, as requirement texts with markers.
    """

    version: str
    requires: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A package that an installation must not move, because the user's code runs with it.

    Attributes:
        name: canonical name.
        specifier: versions that it may have, such as ``==1.9.1``.
        reason: why, as the end of the sentence "this environment keeps NAME".
    """

    name: str
    specifier: str
    reason: str

    def __str__(self) -> str:
        """Return it as a line of a constraints file."""
        return f"{self.name}{self.specifier}"


def is_mxnet(name: str) -> bool:
    """Tell whether a package is one of MXNet's builds on PyPI, which all bring ``mxnet``."""
    return _MXNET.fullmatch(canonicalize_name(name)) is not None


def lookup(name: str) -> Optional[Installed]:
    """Return an installed package of this interpreter, or ``None``."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Installed(distribution.version, tuple(distribution.requires or ()))


def allows(specifiers: SpecifierSet, version: str) -> bool:
    """Tell whether a version is one of those that specifiers allow; pre-releases count.

    A version that is not of PEP 440's form never is; releases of packaging differ in that.
    """
    try:
        return specifiers.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def mxnet_builds() -> List[str]:
    """Return the names of the installed builds of MXNet, read from directory names alone."""
    found = []
    for entry in sys.path:
        for path in pathlib.Path(entry or ".").glob("mxnet*-info"):
            name = canonicalize_name(path.name.split("-")[0])
            if is_mxnet(name):
                found.append(str(name))
    return found


def versions() -> Dict[str, str]:
    """Return the version of every installed package, by canonical name."""
    importlib.invalidate_caches()
    paths = list(sys.path)
    # pip makes this directory when it may not write to the other one; too late for our sys.path.
    if site.ENABLE_USER_SITE and site.getusersitepackages() not in paths:
        paths.append(site.getusersitepackages())
    found: Dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=paths):
        name = distribution.metadata["Name"]
        if name:  # a half removed package has none
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> List[str]:
    """Return what changed between two results of ``versions``, as ``numpy 1.23.5 -> 2.0.0``."""
    return [
        f"{name} {before.get(name, '(none)')} -> {after.get(name, '(none)')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def importable_numpy(environ: Mapping[str, str]) -> str:
    """Return the versions of NumPy with which MXNet 1.9.1 can be imported.

    MXNet uses names that NumPy 1.24 removed (apache/mxnet #21165); ``compatibility`` restores them,
    unless it is switched off.
    """
    off = environ.get(compatibility.VARIABLE) == "0"
    return ">1.16.0,<1.24" if off else ">1.16.0,<3"


def kept_packages(
    asked: Iterable[Requirement],
    numpy_range: str,
    find: Callable[[str], Optional[Installed]] = lookup,
    mxnet_builds: Iterable[str] = (),
) -> Tuple[Kept, ...]:
    """Return what an installation must keep.

    Args:
        asked: what the user's file asks for by name.
        numpy_range: versions of NumPy that MXNet can import.
        find: looks an installed package up.
        mxnet_builds: names of the installed builds of MXNet.
    """
    asked = list(asked)
    kept: List[Kept] = []
    for build in mxnet_builds:
        installed = find(build)
        if installed is not None:
            # Another build of it, asked for by name, would overwrite this one's files.
            names = {canonicalize_name(build)}
            names |= {canonicalize_name(each.name) for each in asked if is_mxnet(each.name)}
            reason = f"since {build} {installed.version} is the MXNet that is installed"
            kept += [Kept(name, f"=={installed.version}", reason) for name in sorted(names)]
            break
    kept.append(_kept_numpy(asked, numpy_range, find))
    toolkit = find(TOOLKIT)
    if toolkit is not None:
        reason = "since it runs the user's code"
        kept.append(Kept(TOOLKIT, f"=={toolkit.version}", reason))
        for text in toolkit.requires:
            try:
                needs = Requirement(text)
            except InvalidRequirement:
                continue
            if needs.specifier and needs.marker is None:
                name = canonicalize_name(needs.name)
                kept.append(Kept(name, str(needs.specifier), f"which {TOOLKIT} needs"))
    return tuple(kept)


def _kept_numpy(
    asked: Iterable[Requirement], numpy_range: str, find: Callable[[str], Optional[Installed]]
) -> Kept:
    """Return NumPy as it is installed, or where the user names another one, any that works."""
    installed = find("numpy")
    others = [
        each
        for each in asked
        if canonicalize_name(each.name) == "numpy"
        and installed is not None
        and not allows(each.specifier, installed.version)
    ]
    if installed is None or others:
        return Kept("numpy", numpy_range, "the versions that MXNet can import")
    return Kept(
        "numpy",
        f"=={installed.version}",
        "the installed version (to have another one, name it in requirements.txt)",
    )
