"""Trains a small network with Keras, MXNet as its backend."""

import tempfile

import keras
import mxnet as mx
import numpy as np
from keras.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten, MaxPooling2D

random = np.random.RandomState(1)
images = random.rand(512, 8, 8, 1).astype("float32")
bright = (images[:, :4].sum((1, 2, 3)) > images[:, 4:].sum((1, 2, 3))).astype(int)
labels = keras.utils.to_categorical(bright, 2)
model = keras.models.Sequential(
    [
        Conv2D(8, (3, 3), activation="relu", input_shape=(8, 8, 1)),
        BatchNormalization(),
        MaxPooling2D(),
        Dropout(0.1),
        Flatten(),
        Dense(2, activation="softmax"),
    ]
)
model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
losses = model.fit(images, labels, epochs=5, batch_size=32, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
with tempfile.TemporaryDirectory() as folder:
    keras.models.save_mxnet_model(model, f"{folder}/model")
    symbol, parameters, _ = mx.model.load_checkpoint(f"{folder}/model", 0)
    assert parameters and symbol.list_outputs()
