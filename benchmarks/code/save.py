"""Times ``save`` of a Module of 500 MB, and plain writes of as many bytes, in turn. No job."""

import json
import os
import shutil
import sys
import tempfile
import time

import mxnet as mx

from sagemaker_mxnet_container.training_utils import save

LAYERS, WIDTH = 5, 5000

rounds = int(sys.argv[1])
symbol = mx.sym.Variable("data")
for number in range(LAYERS):
    symbol = mx.sym.FullyConnected(symbol, num_hidden=WIDTH, no_bias=True, name=f"dense{number}")
module = mx.mod.Module(symbol, data_names=["data"], label_names=None)
module.bind([("data", (1, WIDTH))], for_training=False)
module.init_params(mx.init.Xavier())


def plain(path, durable):
    with open(path, "wb") as file:
        file.write(block)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def timed(action):
    began = time.monotonic()
    action()
    return time.monotonic() - began


figures = {"save": [], "durable": [], "plain": []}
with tempfile.TemporaryDirectory(dir=os.environ["BENCHMARK_DIRECTORY"]) as directory:
    model = os.path.join(directory, "model")
    os.mkdir(model)
    arguments = (model, module, "algo-1", ["algo-1"])
    save(*arguments)
    with open(os.path.join(model, "model-0000.params"), "rb") as file:
        block = file.read()
    assert len(block) >= 4 * LAYERS * WIDTH * WIDTH
    for _ in range(rounds):
        shutil.rmtree(model)
        os.mkdir(model)
        os.sync()
        figures["save"].append(timed(lambda: save(*arguments)))
        for name, durable in (("durable", True), ("plain", False)):
            path = os.path.join(directory, name)
            os.sync()
            figures[name].append(timed(lambda p=path, d=durable: plain(p, d)))
            os.unlink(path)
print(json.dumps(figures))
