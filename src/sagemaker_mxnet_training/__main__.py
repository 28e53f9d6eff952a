"""``python -m sagemaker_mxnet_training``, the same as the console script."""

from sagemaker_mxnet_cli import main

main()
