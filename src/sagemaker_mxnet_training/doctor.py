"""``sagemaker-mxnet-training doctor`` checks whether a job can run in this environment.

``diagnose`` collects facts, ``reasons`` finds what would prevent a job, and ``render`` formats
both. Nothing is created, and the network is not used.
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
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import psutil

from sagemaker_mxnet_toolkit import container
from sagemaker_mxnet_toolkit.mxnet_import import MXNet, import_mxnet
from sagemaker_mxnet_toolkit.requirements import known
from sagemaker_mxnet_toolkit.settings.variables import COMPATIBILITY
from sagemaker_mxnet_training import __version__
from sagemaker_mxnet_training.config import configuration
from sagemaker_mxnet_training.config.directories import check_writable
from sagemaker_mxnet_training.config.job import describe
from sagemaker_mxnet_training.host import horovod

IMPORT_SECONDS = 60.0
"""Timeout in seconds for importing MXNet, which usually takes 1 to 4."""

LEAST_FREE = 16 * 2**20
"""Minimum free space in bytes of each file system, for code, a small model and the result."""

_LABEL = 15
_FEATURES = {"kvstore": "DIST_KVSTORE", "CUDA": "CUDA", "MKLDNN": "MKLDNN"}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Facts about this environment, with the keys of ``--json``.

    Attributes:
        python: ``version`` and ``executable`` of this interpreter.
        packages: version of each package that a job needs; ``None`` if it is missing.
        mxnet: the result of importing MXNet.
        cpus: number of ``usable`` CPUs, ``quota`` of the control group, CPUs of the ``machine``.
        memory: in bytes: ``used`` and ``limit`` of the control group, ``available`` and total of
            the ``machine``.
        gpus: number of NVIDIA devices in this container.
        interfaces: IPv4 addresses by network interface.
        base_dir: the base directory, ``/opt/ml`` or ``SAGEMAKER_BASE_DIR``.
        disks: ``free`` and ``size`` of each file system in bytes, by a directory of the job.
        configured: whether a job is configured.
        job: the lines of ``config.job.describe``; empty if the configuration is invalid.
        faults: faults of its configuration or its directories.
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
    """Print the diagnosis; return 0 if a job can run, else 1."""
    diagnosis = diagnose(environ)
    problems = reasons(diagnosis)
    text = render(diagnosis)
    if as_json:
        found = {"ok": not problems, "reasons": problems, **dataclasses.asdict(diagnosis)}
        text = json.dumps(found, indent=2)
    encoding = sys.stdout.encoding
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 1 if problems else 0


def diagnose(environ: Mapping[str, str], import_seconds: float = IMPORT_SECONDS) -> Diagnosis:
    """Collect facts about this environment."""
    base = configuration.base_directory(environ)
    configured = _is_configured(environ, base)
    job, faults, directories = _job(environ, base, configured)
    memory = psutil.virtual_memory()
    cpus = {"quota": container.cpu_quota(), "machine": os.cpu_count()}
    own = {"used": container.memory_usage(), "limit": container.memory_limit()}
    return Diagnosis(
        python={"version": platform.python_version(), "executable": sys.executable},
        packages={
            "sagemaker-mxnet-training": __version__,
            **{name: _version(name) for name in ("sagemaker-training", "numpy", "pip")},
        },
        mxnet=import_mxnet(environ, import_seconds),
        cpus={"usable": container.count_cpus(), **cpus},
        memory={**own, "available": memory.available, "machine": memory.total},
        gpus=container.count_gpus(),
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
    """Return why a job cannot run here; an empty list if it can."""
    found = list(diagnosis.faults)
    if diagnosis.mxnet.error:
        found.append(
            f"import mxnet fails in {diagnosis.python['executable']}: {diagnosis.mxnet.error}; "
            f"expected MXNet 1.9.1: run {known.INSTALL_MXNET}, or use an image with MXNet"
        )
    found += (
        f"not enough disk space at {path}: {_size(disk['free'])} free of {_size(disk['size'])}; "
        f"expected at least {_size(LEAST_FREE)}: free disk space, or mount a larger volume"
        for path, disk in diagnosis.disks.items()
        if disk["free"] < LEAST_FREE
    )
    return found


def render(diagnosis: Diagnosis, width: int = 80, height: int = 40) -> str:
    """Return the diagnosis as text. The job's description is cut to fit; reasons are not."""
    lines = [line for row in _rows(diagnosis) for line in _wrap(*row, width)]
    problems = reasons(diagnosis)
    end = ["A job cannot run here:" if problems else "A job can run here."]
    end += [line for problem in problems for line in _wrap("-", problem, width, 2)]
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
        features = (f"{k} {'yes' if v in mxnet.features else 'no'}" for k, v in _FEATURES.items())
        yield "", ", ".join(features)
        yield "Horovod", _horovod(mxnet.horovod)
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
    state = "see below" if diagnosis.faults else "configured:"
    where = f"no SM_* variable, nothing in {diagnosis.base_dir}/input/config"
    yield "job", state if diagnosis.configured else f"not configured ({where})"


def _horovod(found: Mapping[str, Any]) -> str:
    if not found:
        return "not installed (distribution={'mpi': ...} needs it)"
    if "error" in found:
        return f"cannot be imported: {found['error']}"
    return f"{found['version']}, built with {', '.join(found['built']) or 'nothing'}"


def _compatibility(mxnet: MXNet) -> str:
    did = mxnet.compatibility
    if not did:
        return "(unknown)"
    if not did["enabled"]:
        return f"disabled by {COMPATIBILITY}"
    where = "in every Python process" if did["hook"] else "in jobs only: its .pth file is not read"
    lent, repaired = len(did["lent"]), len(did["repaired"])
    return f"{where}; {lent} NumPy names provided to MXNet, {repaired} of its modules patched"


def _wrap(label: str, text: str, width: int, indent: int = _LABEL) -> List[str]:
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False, break_long_words=False)
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
    """Return the description of the job, its faults, and its output directories."""
    directories = [base, *(os.path.join(base, name) for name in ("code", "model", "output"))]
    if not configured:
        # Without a base directory, this is not a container.
        checked = directories[2:] if os.path.isdir(base) else ()
        return (), [*filter(None, map(check_writable, checked))], directories
    resolution = configuration.resolve(environ)
    if resolution.faults:
        return (), resolution.faults, directories
    job = resolution.job
    directories = [base, job.code_dir, job.model_dir, job.output_dir, job.output_data_dir]
    missing = []
    if job.horovod is not None:
        missing = [] if horovod.library() else [horovod.MISSING]
    return describe(job).splitlines(), missing, directories


def _is_configured(environ: Mapping[str, str], base: str) -> bool:
    if environ.get("SAGEMAKER_PROGRAM") or any(name.startswith("SM_") for name in environ):
        return True
    try:
        return bool(os.listdir(os.path.join(base, "input", "config")))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # it exists, but is not readable
        return True


def _disks(directories: Iterable[str]) -> Dict[str, Mapping[str, int]]:
    """Return the file systems of directories, which may not exist, each once."""
    found: Dict[str, Mapping[str, int]] = {}
    seen = set()
    for directory in directories:
        existing = directory
        while not os.path.exists(existing) and os.path.dirname(existing) != existing:
            existing = os.path.dirname(existing)
        with suppress(OSError):
            device, disk = os.stat(existing).st_dev, os.statvfs(existing)
            # A read-only file system is a separate fault, if it matters.
            if device not in seen and not disk.f_flag & os.ST_RDONLY:
                free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
                found[directory] = {"free": free, "size": size}
            seen.add(device)
    return found
