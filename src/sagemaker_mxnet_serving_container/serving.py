"""For images whose program is ``sagemaker_mxnet_serving_container.serving:main``."""

from sagemaker_mxnet_serving.serve import main

__all__ = ["main"]
