"""Compatibility with images and scripts for AWS's MXNet training toolkit 4.x.

``SAGEMAKER_TRAINING_MODULE=sagemaker_mxnet_container.training:main`` in an image and
``from sagemaker_mxnet_container.training_utils import save, scheduler_host`` in a script work
unchanged. New code should import ``sagemaker_mxnet_training``.
"""
