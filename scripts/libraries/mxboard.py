"""Writes a scalar, a histogram and an image for TensorBoard, and reads the file back."""

import pathlib
import tempfile

import mxnet as mx
from mxboard import SummaryWriter

with tempfile.TemporaryDirectory() as folder:
    with SummaryWriter(logdir=folder) as writer:
        writer.add_scalar("loss", 0.5, 0)
        writer.add_histogram("weights", mx.nd.random.normal(shape=(100,)), bins=10, global_step=1)
        writer.add_image("image", mx.nd.random.uniform(shape=(1, 8, 8)), 0)
    [events] = pathlib.Path(folder).glob("events*")
    content = events.read_bytes()
assert all(tag in content for tag in (b"loss", b"weights", b"image"))
