"""The programs ``serve`` and ``doctor MODEL_DIR``."""

import os
import sys
from typing import Mapping, NoReturn, Optional

from sagemaker_mxnet_serving.front import process_specs, server_settings
from sagemaker_mxnet_serving.inference import description_lines
from sagemaker_mxnet_toolkit.code import fetch
from sagemaker_mxnet_toolkit.failure import ConfigurationError, JobError
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import own_process
from sagemaker_mxnet_toolkit.requirements import known


def run(
    environ: Mapping[str, str],
    model_dir: Optional[str] = None,
    host: Optional[str] = None,
    port: Optional[int] = None,
    workers: Optional[int] = None,
) -> int:
    """Serve what the environment and the arguments describe; return the exit status.

    Args:
        environ: the environment.
        model_dir: the model's directory; makes the loopback interface the default.
        host: the address to listen on.
        port: the port to listen on.
        workers: worker processes.
    """
    try:
        settings = server_settings.resolve(environ, model_dir, host, port, workers)
    except ConfigurationError as error:
        return _log_error(str(error))
    try:
        from sagemaker_mxnet_serving.front import server  # imports optional packages
    except ModuleNotFoundError as error:
        return _log_error(_not_installed(error))
    return server.serve(settings, environ)


def _log_error(reason: str) -> int:
    """Log why the server cannot start; return the exit status."""
    log = Log("localhost", program=server_settings.PROGRAM)
    log.error("serve", reason)
    log.close()
    return 1


def _not_installed(error: ModuleNotFoundError) -> str:
    return f"{error.name} is not installed; run {known.INSTALL_SERVING}"


def main() -> NoReturn:
    """Serve what the environment describes; ``sagemaker_mxnet_serving_container.serving.main``."""
    with own_process.blocked_stop_signals():
        status = run(os.environ)
    sys.exit(status)


def check(environ: Mapping[str, str], model_dir: str) -> int:
    """Load a model as a worker does, and predict once, in this process; print the result.

    This runs the model's script, without installing its requirements.

    Args:
        environ: the environment of the server.
        model_dir: the model's directory.

    Returns:
        0 if the model can be served, else 1.
    """
    model_dir = os.path.abspath(model_dir)  # the working directory changes below
    try:
        from sagemaker_mxnet_serving.worker import worker_process  # imports optional packages

        server = server_settings.resolve(environ, model_dir)
        with process_specs.code_folder(server) as settings:
            if settings.code_source:
                # sagemaker-training makes directories below it when it is imported.
                os.environ["SAGEMAKER_BASE_DIR"] = os.path.dirname(settings.code_dir)
                fetch.fetch(
                    settings.code_source,
                    settings.code_dir,
                    process_specs.CODE_SETTING,
                    settings.region or None,
                )
            variables = process_specs.script_variables(settings, settings.model_dir, environ)
            os.environ.update({**variables, "SAGEMAKER_BASE_DIR": settings.base_dir})
            loaded = worker_process.load(process_specs.model_settings(settings, settings.model_dir))
    except (JobError, ModuleNotFoundError) as error:
        reason = _not_installed(error) if isinstance(error, ModuleNotFoundError) else str(error)
        print(f"The model in {model_dir} cannot be served: {reason}")
        return 1
    print(f"The model in {model_dir} can be served:")
    for line in description_lines(loaded.describe()):
        print(f"  {line}")
    return 0
