"""Lets MXNet's data sets read files that are not the originals, whose hashes they would check."""

from sagemaker_mxnet_toolkit import compatibility


def _allow():
    from mxnet.gluon import utils

    utils.check_sha1 = lambda filename, sha1_hash: True


compatibility.after_import(_allow)
