"""One step of the kvstore. With ``fault`` the script then raises on one host, the others wait."""

from marks import mark

mark("first")

import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import mxnet as mx  # noqa: E402

kv = mx.kv.create("dist_sync")
weights = mx.nd.zeros((1000,))
kv.init("weights", weights)
kv.push("weights", mx.nd.ones((1000,)))
kv.pull("weights", out=weights)
weights.wait_to_read()
mark("step")
if "--fault" in sys.argv:
    time.sleep(0.5)
    if os.environ["SM_CURRENT_HOST"] == "127.0.0.2":
        mark("fault")
        raise RuntimeError("a fault of the script")
    while True:
        kv.push("weights", mx.nd.ones((1000,)))
        kv.pull("weights", out=weights)
        weights.wait_to_read()
mark("last")
