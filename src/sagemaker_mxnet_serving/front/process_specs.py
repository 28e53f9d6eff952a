"""The processes that serve a model, and the temporary directories that they need.

Pure functions turn the settings into process specifications.
"""

import contextlib
import json
import os
import platform
import sysconfig
import tempfile
from dataclasses import asdict, replace
from typing import Dict, Iterator, Mapping

from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_serving.inference import ModelSettings
from sagemaker_mxnet_serving.model_directory import locate
from sagemaker_mxnet_toolkit import container
from sagemaker_mxnet_toolkit.code import preparation
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec
from sagemaker_mxnet_toolkit.requirements import virtual_environment

# Programs that children run, by name: the server imports little of what they need.
_FETCH = "sagemaker_mxnet_toolkit.code.fetch"
_INSTALL = "sagemaker_mxnet_toolkit.requirements.install"
_MODEL = "sagemaker_mxnet_serving.worker.model_process"

CODE_SETTING = "SAGEMAKER_SUBMIT_DIRECTORY"
"""The variable that names the source of the code, for errors."""


def code_dir(settings: ServerSettings, model_dir: str) -> str:
    """Return the directory of a model's code, which need not exist."""
    return locate(model_dir, settings.code_dir, settings.program).code_dir


def fetch(settings: ServerSettings, environ: Mapping[str, str]) -> ProcessSpec:
    """Return the process that downloads code that is apart from the model."""
    region = ("--region", settings.region) if settings.region else ()
    argv = program.argv(
        _FETCH,
        *("--source", settings.code_source, "--code-dir", settings.code_dir),
        *("--setting", CODE_SETTING, *region),
    )
    # sagemaker-training makes directories below its base directory when it is imported.
    base = os.path.dirname(settings.code_dir)
    environment = {**_environment(settings, environ), "SAGEMAKER_BASE_DIR": base}
    return ProcessSpec(Role.FETCH, "fetch", argv, environment, base)


def install(settings: ServerSettings, model_dir: str, environ: Mapping[str, str]) -> ProcessSpec:
    """Return the process that installs the requirements of the model's code."""
    directory = code_dir(settings, model_dir)
    argv = program.argv(_INSTALL, "--code-dir", directory, python=settings.python)
    environment = _environment(settings, environ)
    return ProcessSpec(Role.INSTALL, "install", argv, environment, directory)


def model(
    settings: ServerSettings, name: str, model_dir: str, control: int, environ: Mapping[str, str]
) -> ProcessSpec:
    """Return the process that loads a model and forks its workers.

    Args:
        settings: the server's.
        name: the model's.
        model_dir: where it is.
        control: the model process's end of the control socket.
        environ: the server's environment.
    """
    options = asdict(model_settings(settings, model_dir))
    argv = program.argv(
        _MODEL,
        *("--control", str(control), "--parent", str(os.getpid())),
        *("--settings", json.dumps(options)),
        python=settings.python,
    )
    own = script_variables(settings, model_dir, environ)
    variables = _environment(settings, {**_threads(settings), **environ, **own})
    return ProcessSpec(Role.MODEL, name, argv, variables, "/", inherited=(control,))


def model_settings(settings: ServerSettings, model_dir: str) -> ModelSettings:
    """Return the settings of one model of a server."""
    return ModelSettings(
        model_dir=model_dir,
        program=settings.program,
        accept=settings.accept,
        first_dimension=settings.first_dimension,
        gpus=settings.gpus,
        max_batch=settings.batch_size,
        code_dir=settings.code_dir,
        log_level=settings.log_level,
        shared=settings.shared,
    )


def script_variables(
    settings: ServerSettings, model_dir: str, environ: Mapping[str, str]
) -> Dict[str, str]:
    """Return the variables of a training job that scripts may also read while they serve.

    ``estimator.deploy`` serves with the training script. A worker sees at most one GPU.
    """
    location = locate(model_dir, settings.code_dir, settings.program)
    host = environ.get("SM_CURRENT_HOST") or platform.node()
    return {
        "SM_MODEL_DIR": location.model_dir,
        "SM_CURRENT_HOST": host,
        "SM_HOSTS": environ.get("SM_HOSTS") or json.dumps([host]),
        "SM_NUM_CPUS": environ.get("SM_NUM_CPUS") or str(container.count_cpus()),
        "SM_NUM_GPUS": environ.get("SM_NUM_GPUS") or str(min(settings.gpus, 1)),
        CODE_SETTING: location.code_dir,
    }


def _threads(settings: ServerSettings) -> Dict[str, str]:
    """Return the variables that set the threads of a worker, unless the user sets them.

    A worker computes one prediction at a time. On a CPU it computes in its own thread, without the
    threads of MXNet's engine, which would cost two switches for each prediction.
    """
    return {
        "OMP_NUM_THREADS": str(settings.threads),
        "MKL_NUM_THREADS": str(settings.threads),
        "MXNET_CPU_WORKER_NTHREADS": "1",
        **({} if settings.gpus else {"MXNET_ENGINE_TYPE": "NaiveEngine"}),
    }


def _environment(settings: ServerSettings, environ: Mapping[str, str]) -> Dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        # Nothing is written into a model directory, which is read-only on SageMaker.
        "PYTHONDONTWRITEBYTECODE": "1",
        # MXNet would print a line for each executor.
        "MXNET_SUBGRAPH_VERBOSE": "0",
        **environ,
        "PATH": program.search_path(environ, settings.python),
    }


@contextlib.contextmanager
def own_packages(settings: ServerSettings, environ: Mapping[str, str]) -> Iterator[ServerSettings]:
    """Yield settings whose ``python`` is one into which requirements of models may be installed.

    This is the current Python. If its packages must not change, or the user cannot write them, it
    is a temporary virtual environment, which is removed afterwards.
    """
    with contextlib.ExitStack() as stack:
        fixed = settings.keep_packages or not os.access(sysconfig.get_path("purelib"), os.W_OK)
        if fixed and _may_install(settings) and "PIP_TARGET" not in environ:
            with contextlib.suppress(OSError):  # pip says what is wrong, if it is needed
                name = "sagemaker-mxnet-packages-"
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=name))
                python = virtual_environment.create_environment(folder)
                settings = replace(settings, python=python)
        yield settings


def _may_install(settings: ServerSettings) -> bool:
    """Return whether a model of a server has requirements, as far as is known before it loads."""
    if settings.multi_model or settings.code_source:
        return True
    return preparation.install_needed(code_dir(settings, settings.model_dir))


@contextlib.contextmanager
def code_folder(settings: ServerSettings) -> Iterator[ServerSettings]:
    """Yield the settings; with a ``code_source``, their ``code_dir`` is a new temporary directory.

    The directory is removed afterwards.
    """
    with contextlib.ExitStack() as stack:
        if settings.code_source:
            name = "sagemaker-mxnet-code-"
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=name))
            settings = replace(settings, code_dir=os.path.join(folder, "code"))
        yield settings
