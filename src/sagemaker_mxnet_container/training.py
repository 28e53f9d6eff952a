"""For images that set ``SAGEMAKER_TRAINING_MODULE=sagemaker_mxnet_container.training:main``."""

from sagemaker_mxnet_training.training import main

__all__ = ["main"]
