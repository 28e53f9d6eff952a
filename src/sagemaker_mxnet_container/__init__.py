"""The names that images and scripts written for AWS's MXNet training toolkit 4.x import.

``SAGEMAKER_TRAINING_MODULE=sagemaker_mxnet_container.training:main`` in an image and
``from sagemaker_mxnet_container.training_utils import save, scheduler_host`` in a script work
unchanged. New code imports ``sagemaker_mxnet_training``.
"""
