"""Imports MXNet in a child process, where it may crash or hang, and reports the result.

A module for ``processes.program``, without arguments. Its last line on stdout is a JSON object with
the result.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Sequence

from sagemaker_mxnet_toolkit import compatibility, tracebacks
from sagemaker_mxnet_toolkit.failure import signal_name
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_toolkit.redaction import redact_text, secrets_in


@dataclass(frozen=True)
class MXNet:
    """The result of importing MXNet.

    Attributes:
        error: why the import failed, or ``None``; after an error, the rest is not known.
        version: MXNet's version.
        directory: the directory that it was imported from.
        seconds: duration of the import.
        features: enabled features of the build (``mxnet.runtime.Features``).
        gpus: number of GPUs that it can use.
        compatibility: ``compatibility.Status`` of that process as JSON, and ``hook``: whether the
            layer is active in all Python processes of this installation, not only in jobs.
        horovod: empty without Horovod for MXNet; else its ``version`` and the libraries that it was
            ``built`` with, or the ``error`` of its import.
    """

    error: Optional[str] = None
    version: Optional[str] = None
    directory: Optional[str] = None
    seconds: Optional[float] = None
    features: Sequence[str] = ()
    gpus: int = 0
    compatibility: Mapping[str, Any] = field(default_factory=dict)
    horovod: Mapping[str, Any] = field(default_factory=dict)


def import_mxnet(environ: Mapping[str, str], timeout: float) -> MXNet:
    """Import MXNet in a child process with the environment of a job; ``timeout`` is in seconds."""
    # If DMLC_ROLE is server or scheduler, ``import mxnet`` runs that role and never returns.
    variables = {name: text for name, text in environ.items() if not name.startswith("DMLC_")}
    try:
        with subprocess.Popen(
            program.argv("sagemaker_mxnet_toolkit.mxnet_import"),
            cwd="/",
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            try:
                output, errors = child.communicate(timeout=timeout)
            finally:
                if child.returncode is None:
                    os.killpg(child.pid, signal.SIGKILL)
    except subprocess.TimeoutExpired:
        return MXNet(f"the import timed out after {timeout:g} s")
    except OSError as error:
        return MXNet(f"cannot start a process for the import: {error.strerror}")
    found = _found(child.returncode, output, errors)
    if found.get("error"):
        text = " ".join(found["error"].split())
        found["error"] = redact_text(text, secrets_in(environ))
    return MXNet(**found)


def _found(returncode: int, output: bytes, errors: bytes) -> Dict[str, Any]:
    """Return the fields of ``MXNet`` that the process printed, or an error."""
    if returncode < 0:
        return {"error": f"the process was killed by {signal_name(-returncode)}"}
    lines = (output if returncode == 0 else errors).decode("utf-8", "replace").splitlines()
    last = lines[-1] if lines else "no output"
    with contextlib.suppress(ValueError):
        if returncode == 0:
            return dict(json.loads(last))
    return {"error": f"the process exited with status {returncode}: {last}"}


def main(arguments: List[str], report: Report) -> NoReturn:
    """Import MXNet, print the result and end the process at once."""
    found: Dict[str, Any] = {}
    hook = False
    try:
        # This calls the hook, if it is installed.
        importlib.util.find_spec("mxnet")
        hook = compatibility.status().installed
        compatibility.install()
        started = time.monotonic()
        import mxnet
        from mxnet.runtime import Features

        found["seconds"] = round(time.monotonic() - started, 3)
        found["version"] = mxnet.__version__
        found["directory"] = os.path.dirname(mxnet.__file__)
        found["features"] = sorted(name for name, each in Features().items() if each.enabled)
        found["horovod"] = _horovod()
        # A build for GPUs raises an error if there is no driver.
        with contextlib.suppress(mxnet.base.MXNetError):
            found["gpus"] = mxnet.context.num_gpus()
    except BaseException as error:
        found = {"error": tracebacks.summary(error)}
    found["compatibility"] = {**compatibility.status()._asdict(), "hook": hook}
    print("\n" + json.dumps(found), flush=True)
    os._exit(0)


def _horovod() -> Dict[str, Any]:
    if importlib.util.find_spec("horovod") is None:
        return {}
    try:
        import horovod
        import horovod.mxnet as hvd

        parts = {"Gloo": "gloo", "MPI": "mpi", "NCCL": "nccl", "CUDA": "cuda"}
        built = [name for name, part in parts.items() if getattr(hvd, f"{part}_built")()]
        return {"version": horovod.__version__, "built": built}
    except Exception as error:
        return {"error": tracebacks.summary(error)}
