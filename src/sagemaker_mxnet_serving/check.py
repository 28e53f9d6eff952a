"""Tells whether a model directory could be served, by loading it as a worker would."""

import os
from typing import Mapping

from sagemaker_mxnet_serving import configuration, description, plan, service
from sagemaker_mxnet_serving.settings import ModelSettings
from sagemaker_mxnet_toolkit.errors import JobError


def run(environ: Mapping[str, str], model_dir: str) -> int:
    """Load a model and predict once, in this process; print the verdict.

    The model's own script is executed. What it requires is not installed.

    Args:
        environ: what a server would be given.
        model_dir: the model's directory.

    Returns:
        0 where the model could be served, else 1.
    """
    try:
        server = configuration.resolve(environ, model_dir)
        settings = ModelSettings(**plan.model_settings(server, server.model_dir))
        loaded = service.load(settings)
        loaded.warm_up()
    except JobError as error:
        print(f"The model in {model_dir} cannot be served: {error}")
        return 1
    print(f"The model in {os.path.abspath(model_dir)} can be served:")
    for line in description.lines(loaded.describe()):
        print(f"  {line}")
    return 0
