"""Which processes serve a model: pure functions from the settings to process specifications."""

import json
import os
from typing import Any, Dict, Mapping

from sagemaker_mxnet_serving.configuration import ServerSettings
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec

# Programs that children run, by name: the server imports little of what they need.
_INSTALL = "sagemaker_mxnet_toolkit.requirements.install"
_MODEL = "sagemaker_mxnet_serving.model_process"


def code_dir(settings: ServerSettings, model_dir: str) -> str:
    """Return where the code of a model is, if it has any."""
    return settings.code_dir or os.path.join(model_dir, "code")


def install(settings: ServerSettings, model_dir: str, environ: Mapping[str, str]) -> ProcessSpec:
    """Return the process that installs what the model's code requires."""
    directory = code_dir(settings, model_dir)
    argv = program.argv(_INSTALL, "--code-dir", directory)
    return ProcessSpec(Role.INSTALL, "install", argv, _environment(environ), directory)


def model(
    settings: ServerSettings, name: str, model_dir: str, control: int, environ: Mapping[str, str]
) -> ProcessSpec:
    """Return the process that loads a model and forks its workers.

    Args:
        settings: the server's.
        name: the model's.
        model_dir: where it is.
        control: the model process' end of its control socket.
        environ: the server's environment.
    """
    options = {
        "model": model_settings(settings, model_dir),
        "shared": settings.shared,
        "gpus": settings.gpus,
    }
    argv = program.argv(
        _MODEL,
        *("--control", str(control), "--parent", str(os.getpid())),
        *("--options", json.dumps(options)),
    )
    variables = _environment({**_threads(settings), **environ})
    return ProcessSpec(Role.MODEL, name, argv, variables, "/", inherited=(control,))


def model_settings(settings: ServerSettings, model_dir: str) -> Dict[str, Any]:
    """Return the fields of ``ModelSettings`` for one model of a server."""
    return {
        "model_dir": model_dir,
        "program": settings.program,
        "accept": settings.accept,
        "first_dimension": settings.first_dimension,
        "use_gpu": settings.gpus > 0,
        "max_batch": settings.batch_size,
        "code_dir": settings.code_dir,
    }


def _threads(settings: ServerSettings) -> Dict[str, str]:
    """Return what sets the threads of a worker, unless the user sets it.

    A worker computes one prediction at a time. On a CPU it does so in its own thread, without
    MXNet's engine, whose threads it would have to wake and wait for.
    """
    return {
        "OMP_NUM_THREADS": str(settings.threads),
        "MKL_NUM_THREADS": str(settings.threads),
        "MXNET_CPU_WORKER_NTHREADS": "1",
        **({} if settings.gpus else {"MXNET_ENGINE_TYPE": "NaiveEngine"}),
    }


def _environment(environ: Mapping[str, str]) -> Dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        # Nothing is written into a model directory, which is read-only on SageMaker.
        "PYTHONDONTWRITEBYTECODE": "1",
        # MXNet would print a line for each executor that is bound.
        "MXNET_SUBGRAPH_VERBOSE": "0",
        **environ,
    }
