"""``python -m sagemaker_mxnet_training``, the same as the console script."""

from sagemaker_mxnet_cli.command_line import main

main()
