"""The program ``serve``."""

import os
import sys
from typing import Mapping, NoReturn, Optional

from sagemaker_mxnet_serving.front import server_settings
from sagemaker_mxnet_toolkit.errors import ConfigurationError
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
        from sagemaker_mxnet_serving.front import server
    except ModuleNotFoundError as error:
        return _log_error(f"{error.name} is not installed; run {known.INSTALL_SERVING}")
    return server.serve(settings, environ)


def _log_error(reason: str) -> int:
    """Log why the server cannot start; return the exit status."""
    log = Log("localhost", program=server_settings.PROGRAM)
    log.error("serve", reason)
    log.close()
    return 1


def main() -> NoReturn:
    """Serve what the environment describes; ``sagemaker_mxnet_serving_container.serving.main``."""
    with own_process.blocked_stop_signals():
        status = run(os.environ)
    sys.exit(status)
