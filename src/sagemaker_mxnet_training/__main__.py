"""``python -m sagemaker_mxnet_training``: the same program as the console script."""

from sagemaker_mxnet_training.cli import main

main()
