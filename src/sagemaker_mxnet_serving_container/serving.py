"""For images whose program is ``sagemaker_mxnet_serving_container.serving:main``."""

from sagemaker_mxnet_serving.serving import main

__all__ = ["main"]
