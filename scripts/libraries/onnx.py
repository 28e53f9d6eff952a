"""Exports a model of the zoo as ONNX, and compares it with MXNet in ONNX Runtime."""

import tempfile

import mxnet as mx
import numpy as np
import onnxruntime

network = mx.gluon.model_zoo.vision.mobilenet0_25(classes=10)
network.initialize(mx.init.Xavier())
network.hybridize()
images = mx.nd.random.normal(shape=(1, 3, 32, 32))
expected = network(images).asnumpy()
with tempfile.TemporaryDirectory() as folder:
    network.export(f"{folder}/model")
    mx.onnx.export_model(
        f"{folder}/model-symbol.json",
        f"{folder}/model-0000.params",
        [images.shape],
        ["float32"],
        f"{folder}/model.onnx",
    )
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    [found] = session.run(None, {"data": images.asnumpy()})
np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
