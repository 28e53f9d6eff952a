"""``sagemaker-mxnet-training doctor`` tells whether a job could run in this environment.

``diagnose`` collects facts, ``reasons`` says what would stop a job, ``render`` makes a screen of
both. Nothing is created, and no other host and no package index is asked.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import textwrap
from contextlib import suppress
from socket import AF_INET
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import psutil

from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.container import cgroup, hardware
from sagemaker_mxnet_toolkit.mxnet_import import MXNet, import_mxnet
from sagemaker_mxnet_training import __version__
from sagemaker_mxnet_training.config import configuration
from sagemaker_mxnet_training.config.description import describe

IMPORT_SECONDS = 60.0
"""Seconds that importing MXNet may take; 1 to 4 are usual."""

LEAST_FREE = 16 * 2**20
"""Free bytes that each file system of the job needs, for code, a small model and the result."""

_LABEL = 15
_FEATURES = {"kvstore": "DIST_KVSTORE", "CUDA": "CUDA", "MKLDNN": "MKLDNN"}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is known about this environment, under the keys of ``--json``.

    Attributes:
        python: ``version`` and ``executable`` of this interpreter.
        packages: version of each package that a job needs; ``None`` if it is missing.
        mxnet: the result of importing MXNet.
        cpus: ``usable`` whole CPUs, ``quota`` of the control group, ``machine`` in all.
        memory: bytes: ``used`` and ``limit`` of the control group, ``available`` and ``machine``.
        gpus: number of NVIDIA devices in this container.
        interfaces: IPv4 addresses by network interface.
        base_dir: ``/opt/ml``, or what ``SAGEMAKER_BASE_DIR`` names.
        disks: bytes ``free`` and ``size`` of each file system, by a directory of the job on it.
        configured: whether anything describes a job here.
        job: the lines of ``description.describe``; empty if the job has faults.
        faults: what is wrong with its configuration or its directories.
    """

    python: Mapping[str, str]
    packages: Mapping[str, Optional[str]]
    mxnet: MXNet
    cpus: Mapping[str, Optional[float]]
    memory: Mapping[str, Optional[int]]
    gpus: int
    interfaces: Mapping[str, Sequence[str]]
    base_dir: str
    disks: Mapping[str, Mapping[str, int]]
    configured: bool
    job: Sequence[str]
    faults: Sequence[str]


def run(environ: Mapping[str, str], as_json: bool) -> int:
    """Print the diagnosis; return 0 where a job can run, else 1.

    Args:
        environ: what a job would be given.
        as_json: print one JSON object instead of a screen.
    """
    diagnosis = diagnose(environ)
    troubles = reasons(diagnosis)
    text = render(diagnosis)
    if as_json:
        found = {"ok": not troubles, "reasons": troubles, **dataclasses.asdict(diagnosis)}
        text = json.dumps(found, indent=2)
    encoding = sys.stdout.encoding
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 1 if troubles else 0


def diagnose(environ: Mapping[str, str], import_seconds: float = IMPORT_SECONDS) -> Diagnosis:
    """Look at this environment.

    Args:
        environ: what a job would be given.
        import_seconds: how long importing MXNet may take.
    """
    base = configuration.base_directory(environ)
    configured = _is_configured(environ, base)
    job, faults, directories = _job(environ, base, configured)
    memory = psutil.virtual_memory()
    cpus = {"quota": cgroup.cpu_quota(), "machine": os.cpu_count()}
    own = {"used": cgroup.memory_usage(), "limit": cgroup.memory_limit()}
    return Diagnosis(
        python={"version": platform.python_version(), "executable": sys.executable},
        packages={
            "sagemaker-mxnet-training": __version__,
            **{name: _version(name) for name in ("sagemaker-training", "numpy", "pip")},
        },
        mxnet=import_mxnet(environ, import_seconds),
        cpus={"usable": hardware.count_cpus(), **cpus},
        memory={**own, "available": memory.available, "machine": memory.total},
        gpus=hardware.count_gpus(),
        interfaces={
            name: [each.address for each in addresses if each.family == AF_INET]
            for name, addresses in psutil.net_if_addrs().items()
        },
        base_dir=base,
        disks=_disks(directories),
        configured=configured,
        job=job,
        faults=faults,
    )


def reasons(diagnosis: Diagnosis) -> List[str]:
    """Return why a job could not run here; an empty list if it can."""
    found = list(diagnosis.faults)
    if diagnosis.mxnet.error:
        found.append(
            f"import mxnet fails in {diagnosis.python['executable']}: {diagnosis.mxnet.error}; "
            "expected MXNet 1.9.1: install it as README.md describes, or use an image that has it"
        )
    found += (
        f"no disk space at {path}: {_size(disk['free'])} free of {_size(disk['size'])}; "
        f"expected at least {_size(LEAST_FREE)}: free some, or mount a larger volume"
        for path, disk in diagnosis.disks.items()
        if disk["free"] < LEAST_FREE
    )
    return found


def render(diagnosis: Diagnosis, width: int = 80, height: int = 40) -> str:
    """Return a screen of text. The job's description is cut to fit; reasons are never cut.

    Args:
        diagnosis: the facts.
        width: columns.
        height: lines.
    """
    lines = [line for row in _rows(diagnosis) for line in _wrap(*row, width)]
    troubles = reasons(diagnosis)
    end = ["A job could not run here:" if troubles else "A job can run here."]
    end += [line for trouble in troubles for line in _wrap("-", trouble, width, 2)]
    job = [f"  {line}" for line in diagnosis.job]
    room = max(1, height - len(lines) - len(end))
    if len(job) > room:
        job[room - 1 :] = [f"  ... ({len(job) - room + 1} more lines: see --json)"]
    cut = (line if len(line) <= width else line[: width - 3] + "..." for line in job)
    return "\n".join([*lines, *cut, *end])


def _rows(diagnosis: Diagnosis) -> Iterator[Tuple[str, str]]:
    packages = {name: version or "(missing)" for name, version in diagnosis.packages.items()}
    own, sagemaker = packages["sagemaker-mxnet-training"], packages["sagemaker-training"]
    cpus, memory, mxnet = diagnosis.cpus, diagnosis.memory, diagnosis.mxnet
    yield "this toolkit", f"{own}, with sagemaker-training {sagemaker}"
    yield "Python", f"{diagnosis.python['version']} ({diagnosis.python['executable']})"
    yield "NumPy", packages["numpy"]
    if mxnet.error:
        yield "MXNet", "cannot be imported, see below"
    else:
        yield "MXNet", f"{mxnet.version}, imported in {mxnet.seconds} s ({mxnet.directory})"
        told = (f"{k} {'yes' if v in mxnet.features else 'no'}" for k, v in _FEATURES.items())
        yield "", ", ".join(told)
    yield "compatibility", _compatibility(mxnet)
    yield "pip", packages["pip"]
    quota = "no quota" if cpus["quota"] is None else f"quota {cpus['quota']:g}"
    yield "CPUs", f"{cpus['usable']} of the machine's {cpus['machine']} ({quota})"
    limit = "no limit" if memory["limit"] is None else f"limit {_size(memory['limit'])}"
    machine = f"machine {_size(memory['machine'])}, {_size(memory['available'])} free"
    yield "memory", f"used {_size(memory['used'])}, {limit}; {machine}"
    yield "GPUs", f"{diagnosis.gpus} in this container, {mxnet.gpus} that MXNet can use"
    addresses = (f"{name} {' '.join(each)}" for name, each in diagnosis.interfaces.items() if each)
    yield "interfaces", ", ".join(addresses) or "(none with an IPv4 address)"
    for path, disk in diagnosis.disks.items():
        yield "disk", f"{_size(disk['free'])} free of {_size(disk['size'])} at {path}"
    state = "see below" if diagnosis.faults else "as its configuration describes it:"
    where = f"no SM_* variable, nothing in {diagnosis.base_dir}/input/config"
    yield "job", state if diagnosis.configured else f"no job configured here ({where})"


def _compatibility(mxnet: MXNet) -> str:
    did = mxnet.compatibility
    if not did:
        return "(unknown)"
    if not did["enabled"]:
        return f"off, by {compatibility.VARIABLE}"
    where = "in every Python process" if did["hook"] else "in jobs only: its .pth file is not read"
    lent, repaired = len(did["lent"]), len(did["repaired"])
    return f"{where}; {lent} NumPy names provided to MXNet, {repaired} of its modules patched"


def _wrap(label: str, text: str, width: int, indent: int = _LABEL) -> List[str]:
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False)
    return [(" " * indent if n else label.ljust(indent)) + line for n, line in enumerate(lines)]


def _size(count: Optional[int]) -> str:
    if count is None:
        return "(unknown)"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _version(package: str) -> Optional[str]:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _job(
    environ: Mapping[str, str], base: str, configured: bool
) -> Tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Return what a job would get, its faults, and the directories that it would write to."""
    directories = [base, *(os.path.join(base, name) for name in ("code", "model", "output"))]
    if not configured:
        # Without a base directory, this is not meant to be a container.
        checked = directories[2:] if os.path.isdir(base) else ()
        return (), [*filter(None, map(configuration.check_writable, checked))], directories
    resolution = configuration.resolve(environ)
    if resolution.faults:
        return (), resolution.faults, directories
    job = resolution.job
    directories = [base, job.code_dir, job.model_dir, job.output_dir, job.output_data_dir]
    return describe(job).splitlines(), (), directories


def _is_configured(environ: Mapping[str, str], base: str) -> bool:
    if environ.get("SAGEMAKER_PROGRAM") or any(name.startswith("SM_") for name in environ):
        return True
    try:
        return bool(os.listdir(os.path.join(base, "input", "config")))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # it exists, and a job could not read it either
        return True


def _disks(directories: Iterable[str]) -> Dict[str, Mapping[str, int]]:
    """Return the file systems of directories, existing or yet to be made, each once."""
    found: Dict[str, Mapping[str, int]] = {}
    seen = set()
    for directory in directories:
        there = directory
        while not os.path.exists(there) and os.path.dirname(there) != there:
            there = os.path.dirname(there)
        with suppress(OSError):
            device, disk = os.stat(there).st_dev, os.statvfs(there)
            # One that is read-only is always full; if that is a fault, it has one of its own.
            if device not in seen and not disk.f_flag & os.ST_RDONLY:
                free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
                found[directory] = {"free": free, "size": size}
            seen.add(device)
    return found
