"""The program ``serve``: from the environment to the exit status."""

import os
import sys
from typing import Mapping, NoReturn, Optional

from sagemaker_mxnet_serving import configuration, stops
from sagemaker_mxnet_toolkit.errors import ConfigurationError
from sagemaker_mxnet_toolkit.log import Log


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
        model_dir: the model's directory; the server listens on the loopback interface then.
        host: the address to listen on.
        port: the port to listen on.
        workers: worker processes.
    """
    try:
        settings = configuration.resolve(environ, model_dir, host, port, workers)
    except ConfigurationError as error:
        return _refuse(str(error))
    try:
        from sagemaker_mxnet_serving import server  # noqa: PLC0415
    except ModuleNotFoundError as error:
        return _refuse(
            f"{error.name} is not installed; expected what serving needs: "
            "pip install 'sagemaker-mxnet-training[serving]'"
        )
    return server.serve(settings, environ)


def _refuse(reason: str) -> int:
    log = Log("localhost", program=configuration.PROGRAM)
    log.error("serve", reason)
    log.close()
    return 1


def main() -> NoReturn:
    """Serve what the environment describes, as ``sagemaker_mxnet_serving_container`` promises."""
    with stops.held():
        status = run(os.environ)
    sys.exit(status)
