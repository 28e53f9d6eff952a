"""Training container toolkit for Apache MXNet.

Importing this package does nothing else: no file, no variable, no heavy import. The entrypoint
is ``sagemaker_mxnet_training.cli``; what a training script may use is
``sagemaker_mxnet_training.training_utils``.
"""

__version__ = "5.0.0"
