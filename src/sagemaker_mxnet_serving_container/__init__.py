"""The name that images written for AWS's MXNet inference toolkit import.

``from sagemaker_mxnet_serving_container import serving; serving.main()`` works unchanged.
"""
