"""MXNet on this CPython and NumPy does what it did on the ones it was released for."""

import ast
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

import sagemaker_mxnet_training

# Where the package was installed, or src/ of this checkout; the .pth file lies beside it.
SOURCE = pathlib.Path(sagemaker_mxnet_training.__file__).resolve().parents[1]
PROGRAM = pathlib.Path(__file__).with_name("mxnet_behaviour.py")
FILL = "from sagemaker_mxnet_toolkit import compatibility as c; c.install(); import mxnet"
REFERENCE = json.loads(PROGRAM.with_suffix(".json").read_text())

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mxnet") is None, reason="MXNet is not installed here"
)


def python(*arguments, **variables):
    """Run this interpreter with the package that is tested."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="module", params=["without cache", "with cache"])
def outcome(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("behaviour")
    path = folder / "outcome.json"
    variables = {"HOME": str(folder), "SAGEMAKER_MXNET_IMPORT_CACHE": "0"}
    if request.param == "with cache":
        variables["SAGEMAKER_MXNET_IMPORT_CACHE"] = "1"
        filled = python("-c", FILL, **variables)
        assert filled.returncode == 0, filled.stderr
    run = python(PROGRAM, path, **variables)
    assert run.returncode == 0, run.stderr
    return json.loads(path.read_text())


def differences(expected, actual, place=""):
    """Yield where two outcomes differ; numbers may differ as far as processors let them."""
    if isinstance(expected, dict) and isinstance(actual, dict) and expected.keys() == actual.keys():
        for key in expected:
            yield from differences(expected[key], actual[key], f"{place}/{key}")
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for position, pair in enumerate(zip(expected, actual)):
            yield from differences(*pair, f"{place}/{position}")
    elif type(expected) is float and type(actual) is float:
        same = math.isclose(expected, actual, rel_tol=1e-4, abs_tol=1e-5)
        if not same and not (math.isnan(expected) and math.isnan(actual)):
            yield f"{place}: {actual!r}, not {expected!r}"
    elif expected != actual:
        yield f"{place}: {actual!r}, not {expected!r}"


@pytest.mark.parametrize("scenario", sorted(REFERENCE))
def test_same_as_with_the_old_numpy(scenario, outcome):
    """Values, types and errors are those of MXNet on NumPy 1.23."""
    found = list(differences(REFERENCE[scenario], outcome[scenario]))
    # NumPy had these functions itself up to 1.19.
    assert [text for text in found if not text.startswith("/npv")] == []


def test_no_scenario_without_a_reference(outcome):
    assert outcome.keys() == REFERENCE.keys()


def uses_of_numpy(path):
    """Yield each dotted name under a name that the file imports NumPy as."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "numpy"
    }

    def dotted(node):
        if isinstance(node, ast.Name):
            return [node.id]
        if isinstance(node, ast.Attribute):
            names = dotted(node.value)
            return [*names, node.attr] if names else []
        return []

    for node in ast.walk(tree):
        names = dotted(node) if isinstance(node, ast.Attribute) else []
        if names and names[0] in imported:
            yield ".".join(names[1:])


def test_mxnet_finds_every_name_that_its_source_takes_from_numpy(tmp_path):
    package = pathlib.Path(importlib.util.find_spec("mxnet").origin).parent
    # tools/ is a collection of scripts in Python 2; ONNX's converters need a package of their own.
    files = [
        file
        for file in package.rglob("*.py")
        if not {"tools", "onnx"} & set(file.relative_to(package).parts)
    ]
    names = sorted({name for file in files for name in uses_of_numpy(file)})
    assert "PZERO" in names and "bool" in names and len(names) > 100
    listing = tmp_path / "names.json"
    listing.write_text(json.dumps(names))
    run = python(
        "-W",
        "error::DeprecationWarning",
        "-c",
        """
import functools, json, sys
from sagemaker_mxnet_toolkit import compatibility
compatibility.install()
import mxnet
missing = []
for name in json.load(open(sys.argv[1])):
    try:
        functools.reduce(getattr, name.split("."), mxnet.base._np)
    except (AttributeError, DeprecationWarning):
        missing.append(name)
print(json.dumps(missing))
""",
        listing,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


def test_numpy_itself_stays_as_it_is():
    """Neither NumPy's namespace nor the set of modules tells that MXNet was adapted."""
    listing = "import sys; print(sorted(vars(numpy)), 'distutils' in sys.modules)"
    before = python("-c", f"import numpy; import numpy.testing; {listing}")
    after = python(
        "-c",
        "from sagemaker_mxnet_toolkit import compatibility; compatibility.install(); "
        f"import mxnet, numpy; import numpy.testing; {listing}",
    )
    assert after.returncode == 0, after.stderr
    names_before, names_after = (
        ast.literal_eval(run.stdout.rsplit(" ", 1)[0]) for run in (before, after)
    )
    # Submodules that MXNet imports are attributes from then on, in any program.
    assert {name for name in set(names_after) - set(names_before) if not name.islower()} == set()
    assert "PZERO" not in names_after or "PZERO" in names_before
    if sys.version_info >= (3, 12):
        assert after.stdout.split()[-1] == "False"


def test_division_by_numpy_is_recorded():
    """NumPy's own divide on MXNet's arrays runs in MXNet, so that it can be differentiated."""
    run = python(
        "-c",
        """
from sagemaker_mxnet_toolkit import compatibility
compatibility.install()
import mxnet as mx, numpy as np
x = mx.np.array([2.0, 4.0]); x.attach_grad()
with mx.autograd.record():
    y = np.divide(x, mx.np.array([4.0, 8.0]))
y.backward()
print(x.grad.asnumpy().tolist())
""",
    )
    assert run.stdout.strip() == "[0.25, 0.125]", run.stderr


def test_import_is_complete_when_callbacks_run():
    run = python(
        "-c",
        """
from sagemaker_mxnet_toolkit import compatibility
compatibility.after_import(lambda: print(sys.modules["mxnet"].nd.ones((2,)).sum().asscalar()))
import sys
import mxnet
compatibility.after_import(lambda: print("at once"))
""",
    )
    assert run.stdout.split("\n")[:2] == ["2.0", "at once"], run.stderr


def test_a_worker_process_started_afresh_has_the_layer(tmp_path):
    """The .pth file alone is enough, in every interpreter, without importing the toolkit first."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    pth = SOURCE / "sagemaker-mxnet-training.pth"
    (folder / pth.name).write_text(pth.read_text())
    run = python(
        "-S",
        "-c",
        "import site, sys; site.main(); site.addsitedir(sys.argv[1]); "
        "before = [name for name in sys.modules if 'sagemaker' in name or name == 'numpy']; "
        "import mxnet; from sagemaker_mxnet_toolkit import compatibility; "
        "print(before, 'mxnet.numpy.multiarray' in compatibility.status().repaired)",
        folder,
    )
    assert run.stdout.strip() == "[] True", run.stderr


TRAINER = """
import mxnet as mx

calls = []


class Store(mx.kvstore.KVStoreBase):
    type = "dist_recording"

    def broadcast(self, key, value, out, priority=0):
        calls.append("pull")

    def pushpull(self, key, value, out=None, priority=0):
        calls.append("push")

    @staticmethod
    def is_capable(capability):
        return False


wait = mx.nd.waitall
mx.ndarray.waitall = lambda: (calls.append("wait"), wait())
weight = mx.gluon.Parameter("weight", shape=(2,))
weight.initialize()
trainer = mx.gluon.Trainer([weight], "adam", kvstore=Store())
for _ in range(2):
    with mx.autograd.record():
        loss = weight.data().sum()
    loss.backward()
    trainer.step(1)
print(calls)
"""


def test_a_worker_reads_the_first_weights_before_it_pushes_gradients():
    """A server may otherwise have gradients in their place by then."""
    done = python("-c", TRAINER)
    assert done.stdout == "['pull', 'wait', 'push', 'push']\n", done.stdout + done.stderr
