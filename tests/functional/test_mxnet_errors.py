"""MXNet's errors name the exception of the script's own code that they come from."""

import subprocess
import sys
import textwrap

PLACES = ["__init__", "list_arguments", "infer_shape", "create_operator", "forward", "backward"]

SCRIPT = """
import mxnet as mx
from mxnet import autograd, nd

def operator(place):
    def fail(where):
        if where == place:
            raise KeyError("lost in " + place)

    class Op(mx.operator.CustomOp):
        def forward(self, is_train, req, in_data, out_data, aux):
            fail("forward")
            self.assign(out_data[0], req[0], in_data[0])

        def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
            fail("backward")
            self.assign(in_grad[0], req[0], out_grad[0])

    @mx.operator.register("fails_in_" + place)
    class Prop(mx.operator.CustomOpProp):
        def __init__(self):
            fail("__init__")
            super().__init__()

        def list_arguments(self):
            fail("list_arguments")
            return ["data"]

        def infer_shape(self, in_shape):
            fail("infer_shape")
            return in_shape, [in_shape[0]], []

        def create_operator(self, ctx, shapes, dtypes):
            fail("create_operator")
            return Op()

    assert isinstance(Prop, type)
    return lambda x: nd.Custom(x, op_type="fails_in_" + place)

class Function(autograd.Function):
    def forward(self, x):
        return x * 2

    def backward(self, dy):
        raise KeyError("lost in Function")

def report(name, function):
    x = nd.ones((2,))
    x.attach_grad()
    try:
        with autograd.record():
            y = function(x)
        y.backward()
        x.grad.asnumpy()
    except mx.base.MXNetError as error:
        print(f"{name}: {error} from {error.__cause__!r}")

for place in PLACES:
    report(place, operator(place))
report("Function", Function())
try:
    nd.ones((2,)) + nd.ones((3,))
except mx.base.MXNetError as error:
    print("other:", "inferred shapes" in str(error).lower() or "shape" in str(error).lower(),
          error.__cause__)
"""


def test_exceptions_in_operators_of_the_script_are_the_cause() -> None:
    code = (
        "from sagemaker_mxnet_toolkit import compatibility; compatibility.install()\n"
        f"PLACES = {PLACES!r}\n" + textwrap.dedent(SCRIPT)
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if ": KeyError: " in line]
    assert lines == [
        f"{place}: KeyError: 'lost in {place}' (in an operator written in Python) "
        f"from KeyError('lost in {place}')"
        for place in [*PLACES, "Function"]
    ], result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "other: True None"
