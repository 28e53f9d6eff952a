"""Training container toolkit for Apache MXNet.

Importing this package does nothing else: no file, no variable, no heavy import. The entrypoint
is ``sagemaker_mxnet_training.cli``; what a training script may use is
``sagemaker_mxnet_training.training_utils``.
"""

from sagemaker_mxnet_toolkit import __version__

__all__ = ["__version__"]
