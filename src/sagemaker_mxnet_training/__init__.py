"""Training container toolkit for Apache MXNet.

Importing this package has no side effects. Training scripts may use
``sagemaker_mxnet_training.training_utils`` and ``sagemaker_mxnet_training.checkpoints``.
"""

from sagemaker_mxnet_toolkit import __version__

__all__ = ["__version__"]
