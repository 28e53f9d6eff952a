"""Packages that are installed in this interpreter, and those that pip must not change."""

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
from packaging.version import InvalidVersion, Version

from sagemaker_mxnet_toolkit.settings.variables import COMPATIBILITY

TOOLKIT = "sagemaker-mxnet-training"

_MXNET = re.compile(r"mxnet(-(cu\d+(mkl)?|mkl|native))?")


@dataclass(frozen=True)
class Installed:
    """An installed package.

    Attributes:
        version: its version.
        requires: its dependencies, as requirement strings with markers.
    """

    version: str
    requires: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A package whose version pip must not change.

    Attributes:
        name: canonical name.
        specifier: allowed versions, such as ``==1.9.1``.
        reason: why, as the end of the sentence "this environment keeps NAME".
    """

    name: str
    specifier: str
    reason: str

    def __str__(self) -> str:
        """Return a line of a constraints file."""
        return f"{self.name}{self.specifier}"


def is_mxnet(name: str) -> bool:
    """Return whether a package is one of the distributions of ``mxnet``, such as mxnet-cu112."""
    return _MXNET.fullmatch(canonicalize_name(name)) is not None


def lookup(name: str) -> Optional[Installed]:
    """Return an installed package, or ``None``."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Installed(distribution.version, tuple(distribution.requires or ()))


def allows(specifiers: SpecifierSet, version: str) -> bool:
    """Return whether specifiers allow a version, including pre-releases.

    A version that does not comply with PEP 440 is not allowed; releases of packaging differ here.
    """
    try:
        return specifiers.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def mxnet_builds() -> List[str]:
    """Return the names of the installed distributions of MXNet, found by their directories."""
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
    # pip creates the user's site directory if it cannot write to the other one. sys.path does not
    # have it if it was created after this process started.
    if site.ENABLE_USER_SITE and site.getusersitepackages() not in paths:
        paths.append(site.getusersitepackages())
    found: Dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=paths):
        name = distribution.metadata["Name"]
        if name:  # a partly removed package has none
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> List[str]:
    """Return the differences of two results of ``versions``, such as ``numpy 1.23.5 -> 2.0.0``."""
    return [
        f"{name} {before.get(name, '(none)')} -> {after.get(name, '(none)')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def importable_numpy(environ: Mapping[str, str]) -> str:
    """Return the versions of NumPy with which MXNet 1.9.1 can be imported.

    MXNet uses names that NumPy 1.24 removed (apache/mxnet #21165). ``compatibility`` restores them
    unless it is disabled.
    """
    off = environ.get(COMPATIBILITY) == "0"
    return ">1.16.0,<1.24" if off else ">1.16.0,<3"


def kept_packages(
    required: Iterable[Requirement],
    numpy_range: str,
    find: Callable[[str], Optional[Installed]] = lookup,
    mxnet_builds: Iterable[str] = (),
) -> Tuple[Kept, ...]:
    """Return the packages that pip must not change.

    Args:
        required: requirements of the user's file.
        numpy_range: versions of NumPy that MXNet can import.
        find: looks up an installed package.
        mxnet_builds: names of the installed distributions of MXNet.
    """
    required = list(required)
    kept: List[Kept] = []
    for build in mxnet_builds:
        installed = find(build)
        if installed is not None:
            # Another distribution of MXNet would overwrite the files of this one.
            names = {canonicalize_name(build), canonicalize_name("mxnet")}
            names |= {canonicalize_name(each.name) for each in required if is_mxnet(each.name)}
            reason = f"since {build} {installed.version} is installed"
            kept += [Kept(name, f"=={installed.version}", reason) for name in sorted(names)]
            break
    kept.append(_kept_numpy(required, numpy_range, find))
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
    required: Iterable[Requirement], numpy_range: str, find: Callable[[str], Optional[Installed]]
) -> Kept:
    """Return the allowed versions of NumPy.

    By default the installed version and older ones; if the file requires another version, all that
    MXNet can import. pip keeps the installed one if it satisfies all requirements.
    """
    installed = find("numpy")
    others = [
        each
        for each in required
        if canonicalize_name(each.name) == "numpy"
        and installed is not None
        and not allows(each.specifier, installed.version)
    ]
    if installed is None or others:
        return Kept("numpy", numpy_range, "the versions that MXNet can import")
    if not allows(SpecifierSet(numpy_range), installed.version):
        return Kept("numpy", f"=={installed.version}", "the installed version")
    return Kept(
        "numpy",
        f"{numpy_range},<={Version(installed.version).public}",
        "the installed version or an older one (for a newer one, add it to requirements.txt)",
    )


def without_numpy(kept: Iterable[Kept]) -> Dict[str, str]:
    """Return metadata for MXNet without a requirement of NumPy.

    MXNet's own metadata requires ``numpy<2``, so pip would reject a package that requires MXNet
    next to NumPy 2.

    Args:
        kept: packages that pip must not change.

    Returns:
        For each distribution of MXNet among them, the name of a directory, such as
        ``mxnet-1.9.1.dist-info``, and the text of its ``METADATA``.
    """
    builds = [each for each in map(lookup, mxnet_builds()) if each is not None]
    requires = [text for build in builds[:1] for text in build.requires]
    found = {}
    for package in kept:
        if is_mxnet(package.name):
            version = package.specifier[len("==") :]
            lines = ["Metadata-Version: 2.1", f"Name: {package.name}", f"Version: {version}"]
            lines += [f"Requires-Dist: {x}" for x in requires if Requirement(x).name != "numpy"]
            folder = f"{package.name.replace('-', '_')}-{version}.dist-info"
            found[folder] = "\n".join(lines) + "\n"
    return found
