"""Serves models that were trained with Apache MXNet behind the SageMaker hosting contract."""

from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_toolkit import __version__

__all__ = ["InferenceError", "__version__"]
