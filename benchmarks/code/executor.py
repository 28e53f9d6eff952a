"""The floor: ``executor.py MODEL_DIR SECONDS`` runs the bare executor and prints predictions/s."""

import json
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np

directory, seconds = Path(sys.argv[1]), float(sys.argv[2])
symbol = mx.sym.load(str(directory / "model-symbol.json"))
params = mx.nd.load(str(directory / "model-0000.params"))
named = {name.partition(":")[2]: array for name, array in params.items()}
(described,) = json.loads((directory / "model-shapes.json").read_text())
shape = tuple(described["shape"])
executor = symbol.simple_bind(mx.cpu(), grad_req="null", **{described["name"]: shape})
executor.copy_params_from(named, named, allow_extra_params=True)
row = np.random.RandomState(1).rand(*shape).astype("float32")
data = executor.arg_dict[described["name"]]


def predict() -> None:
    """Predict one row."""
    data._sync_copyfrom(row)
    executor.forward(is_train=False)[0].asnumpy()


predict()
began, count = time.monotonic(), 0
while time.monotonic() - began < seconds:
    predict()
    count += 1
print(count / (time.monotonic() - began))
