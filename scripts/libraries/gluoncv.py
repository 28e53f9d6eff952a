"""Trains a detector of GluonCV for one step, and runs a classifier."""

import mxnet as mx
import numpy as np
from gluoncv import model_zoo
from gluoncv.data.transforms.presets.ssd import SSDDefaultTrainTransform
from gluoncv.loss import SSDMultiBoxLoss

classifier = model_zoo.get_model("cifar_resnet20_v1", classes=10)
classifier.initialize()
classifier.hybridize()
assert classifier(mx.nd.random.uniform(shape=(2, 3, 32, 32))).shape == (2, 10)

detector = model_zoo.get_model(
    "ssd_512_mobilenet1.0_custom", classes=["a", "b"], pretrained=False, pretrained_base=False
)
detector.initialize()
with mx.autograd.train_mode():
    anchors = detector(mx.nd.zeros((1, 3, 512, 512)))[2]
transform = SSDDefaultTrainTransform(512, 512, anchors)
image = mx.nd.array(np.random.RandomState(1).randint(0, 255, (300, 300, 3)), dtype="uint8")
data, *targets = transform(image, np.array([[10, 10, 100, 100, 0.0]]))
trainer = mx.gluon.Trainer(detector.collect_params(), "sgd", {"learning_rate": 0.001})
with mx.autograd.record():
    scores, boxes, _ = detector(data.expand_dims(0))
    losses = SSDMultiBoxLoss()(scores, boxes, *(target.expand_dims(0) for target in targets))[0]
    mx.autograd.backward(losses)
trainer.step(1)
assert np.isfinite(losses[0].asscalar())
