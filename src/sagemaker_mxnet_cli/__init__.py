"""The program ``sagemaker-mxnet-training``."""
