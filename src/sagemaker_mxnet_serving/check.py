"""Check whether a model directory can be served: load it as a worker does."""

import os
from typing import Mapping

from sagemaker_mxnet_serving import model_info
from sagemaker_mxnet_serving.front import process_specs, server_settings
from sagemaker_mxnet_serving.model_info import ModelSettings
from sagemaker_mxnet_serving.worker import service
from sagemaker_mxnet_toolkit.code import fetch
from sagemaker_mxnet_toolkit.errors import JobError


def run(environ: Mapping[str, str], model_dir: str) -> int:
    """Load a model and predict once, in this process; print the result.

    This runs the model's script, without installing its requirements.

    Args:
        environ: the environment of the server.
        model_dir: the model's directory.

    Returns:
        0 if the model can be served, else 1.
    """
    model_dir = os.path.abspath(model_dir)  # the working directory changes below
    try:
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
            model = process_specs.model_settings(settings, settings.model_dir)
            loaded = service.load(ModelSettings(**model))
            loaded.warm_up()
    except JobError as error:
        print(f"The model in {model_dir} cannot be served: {error}")
        return 1
    print(f"The model in {model_dir} can be served:")
    for line in model_info.description_lines(loaded.describe()):
        print(f"  {line}")
    return 0
