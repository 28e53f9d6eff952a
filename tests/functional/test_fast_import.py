"""``import mxnet`` with its shortcuts gives scripts what it gives without."""

import importlib.metadata
import importlib.util
import marshal
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

import sagemaker_mxnet_training

mxnet = importlib.util.find_spec("mxnet")
pytestmark = pytest.mark.skipif(mxnet is None, reason="MXNet is not installed here")

SOURCE = pathlib.Path(sagemaker_mxnet_training.__file__).resolve().parents[1]
FUNCTIONS = pathlib.Path(__file__).with_name("mxnet_functions.py")

# The cache of this installation, if there is one, is not what is tested.
BEGIN = """
import sys
from sagemaker_mxnet_toolkit.compatibility import import_hook, status
import_hook.install()
import_hook.use_cache([sys.argv[1]])
import mxnet as mx
"""
PLAIN = BEGIN + "print(mx.nd.relu(mx.nd.array([-1, 2])).asnumpy().tolist(), status().cached)"


def command(*arguments):
    return [sys.executable, *map(str, arguments)]


def environment(**variables):
    # Warnings of releases of SciPy and others are not what is asked about.
    return {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "ignore", **variables}


def python(*arguments, **variables):
    run = subprocess.run(
        command(*arguments),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def cached(cache, code=PLAIN, **variables):
    """Import MXNet and use an operator; return how many functions came from the cache."""
    result, _, number = python("-c", code, cache, **variables).strip().rpartition(" ")
    assert result == "[0.0, 2.0]"
    return int(number)


def file_in(cache):
    (file,) = cache.iterdir()
    return file


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Give a cache that an import has written."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    assert cached(cache) == 0
    return cache


@pytest.fixture
def cache(filled, tmp_path):
    """Give a cache of the test's own."""
    shutil.copytree(filled, tmp_path / "cache")
    return tmp_path / "cache"


def seen(path, cache, options, **variables):
    python(*options, FUNCTIONS, path, cache, **variables)
    found = marshal.loads(path.read_bytes())
    return found["cached"], found["functions"], found["modules"]


LINES = "co_lnotab" if sys.version_info < (3, 10) else "co_linetable"


def same_code(code, other):
    """Compare code objects with their tables of lines, which not every Python's ``==`` does."""
    inner = [
        (one, two)
        for one, two in zip(code.co_consts, other.co_consts)
        if isinstance(one, types.CodeType)
    ]
    parts = (LINES, "co_filename", "co_firstlineno", "co_stacksize", "co_exceptiontable")
    return (
        code == other
        and all(getattr(code, part, None) == getattr(other, part, None) for part in parts)
        and all(same_code(one, two) for one, two in inner)
    )


def same_function(one, other):
    """Compare what ``mxnet_functions`` wrote about two functions."""
    described = {name: part for name, part in one.items() if name != "code"}
    return described == {
        name: part for name, part in other.items() if name != "code"
    } and same_code(one["code"], other["code"])


@pytest.mark.parametrize("options", [[], ["-O"]], ids=["plain", "-O"])
def test_cached_functions_equal_generated_ones(tmp_path, options):
    """Compare all parts of each generated function, and what inspect, pydoc and pickle say."""
    cache = tmp_path / "cache"
    without, functions, modules = seen(
        tmp_path / "without", cache, options, SAGEMAKER_MXNET_IMPORT_CACHE="0"
    )
    assert (without, cache.exists()) == (0, False)
    # MXNet registers each of its operators for arrays and for symbols.
    assert len(functions) > 2000
    for which, least in (("first", 0), ("second", len(functions))):
        number, found, found_modules = seen(tmp_path / which, cache, options)
        assert number >= least
        assert found.keys() == functions.keys()
        different = [n for n in functions if not same_function(found[n], functions[n])]
        assert different == []
        assert found_modules == modules


def test_python_with_other_options_has_a_cache_of_its_own(cache):
    assert int(python("-O", "-c", PLAIN, cache).split()[-1]) == 0
    assert len(list(cache.iterdir())) == 2


def test_mxnets_own_functions_are_in_their_places(filled):
    code = BEGIN + (
        "from mxnet import base, library, ndarray, numpy, symbol\n"
        "for module in (library, ndarray.register, symbol.register):\n"
        "    assert module._init_op_module is base._init_op_module\n"
        "for module in (numpy._register, ndarray.numpy._register, symbol.numpy._register):\n"
        "    assert module._init_np_op_module is base._init_np_op_module\n"
        "assert library._make_ndarray_function is ndarray.register._make_ndarray_function\n"
        "names = {base._init_op_module.__qualname__, base._init_np_op_module.__qualname__,\n"
        "         library._make_ndarray_function.__qualname__}\n"
        "print(status().cached > 0, *sorted(names))"
    )
    expected = "True _init_np_op_module _init_op_module _make_ndarray_function\n"
    assert python("-c", code, filled) == expected


OPERATOR = """
#include "mxnet/lib_api.h"
using namespace mxnet::ext;
using Attributes = std::unordered_map<std::string, std::string>;
MXReturnValue forward(const Attributes&, std::vector<MXTensor>* in, std::vector<MXTensor>* out,
                      const OpResource&) {
  for (int64_t i = 0; i < in->at(0).size(); i++)
    out->at(0).data<float>()[i] = 2 * in->at(0).data<float>()[i];
  return MX_SUCCESS;
}
MXReturnValue parse(const Attributes&, int* in, int* out) { *in = *out = 1; return MX_SUCCESS; }
MXReturnValue types(const Attributes&, std::vector<int>* in, std::vector<int>* out) {
  out->at(0) = in->at(0); return MX_SUCCESS;
}
MXReturnValue shapes(const Attributes&, std::vector<std::vector<unsigned int>>* in,
                     std::vector<std::vector<unsigned int>>* out) {
  out->at(0) = in->at(0); return MX_SUCCESS;
}
REGISTER_OP(twice).setForward(forward, "cpu").setParseAttrs(parse).setInferType(types)
    .setInferShape(shapes);
MXReturnValue initialize(int version) { return version >= 10700 ? MX_SUCCESS : MX_FAIL; }
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_operators_of_a_library_that_is_loaded_later(filled, tmp_path):
    folder = pathlib.Path(mxnet.origin).parent
    (tmp_path / "twice.cc").write_text(OPERATOR)
    library = tmp_path / "libtwice.so"
    sources = tmp_path / "twice.cc", folder / "src" / "lib_api.cc"
    subprocess.run(
        [
            "g++",
            "-std=c++11",
            "-shared",
            "-fPIC",
            "-I",
            folder / "include",
            "-o",
            library,
            *sources,
        ],
        check=True,
        timeout=200,
    )
    code = BEGIN + (
        "before = len(dir(mx.nd)); mx.library.load(sys.argv[2], verbose=False)\n"
        "relu = mx.nd.relu(mx.nd.array([-1, 2])).asnumpy().tolist()\n"
        "twice = mx.nd.twice(mx.nd.array([3])).asnumpy().tolist()\n"
        "print(status().cached > 0, relu, twice, mx.sym.twice(mx.sym.var('x')).list_arguments())"
    )
    assert python("-c", code, filled, library) == "True [0.0, 2.0] [6.0] ['x']\n"
    assert cached(filled) > 2000


def test_the_library_counts_and_not_its_path(cache, tmp_path):
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    folder = pathlib.Path(mxnet.origin).parent
    for library in folder.glob("lib*.so*"):
        (libraries / library.name).symlink_to(library)
    copy = libraries / "libmxnet.so"
    where = {"MXNET_LIBRARY_PATH": str(copy), "LD_LIBRARY_PATH": str(libraries)}
    assert cached(cache, **where) > 2000
    copy.unlink()
    shutil.copyfile(folder / "libmxnet.so", copy)
    with copy.open("ab") as file:
        file.write(b"another build")
    assert cached(cache, **where) == 0


@pytest.mark.parametrize("variable", ["MXNET_ENABLE_CYTHON", "MXNET_ENFORCE_CYTHON"])
def test_variables_of_mxnet_go_on_working(filled, variable):
    outcomes = {}
    for off in ("0", ""):
        run = subprocess.run(
            command("-c", BEGIN + "print(mx.nd.NDArray.__mro__, mx.nd.relu)", filled),
            env=environment(**{variable: "1"}, SAGEMAKER_MXNET_IMPORT_CACHE=off),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        last = (run.stdout + run.stderr).strip().splitlines()[-1]
        outcomes[off] = run.returncode, last.partition(" at 0x")[0]
    assert outcomes["0"] == outcomes[""]


def damages():
    """Yield names and functions that spoil the bytes of a cache."""
    yield "cut short", lambda data: data[: len(data) // 2]
    yield "empty", lambda data: b""
    yield "of another key", lambda data: data.replace(b"optimize=0", b"optimize=1", 1)
    yield "one bit flipped", lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
    for name, content in (("garbage", b"x" * 1000), ("a number", b"i\0\0\0\0")):
        yield name, lambda data, content=content: with_content(data, content)


def with_content(data, content):
    """Return a cache of the same key whose checksum is right."""
    return data[: data.index(b"\n") + 1] + importlib.util.source_hash(content) + content


@pytest.mark.parametrize("name, spoil", list(damages()), ids=[name for name, _ in damages()])
def test_a_cache_that_does_not_fit_is_ignored_and_rewritten(cache, name, spoil):
    file = file_in(cache)
    good = file.read_bytes()
    file.write_bytes(spoil(good))
    assert file.read_bytes() != good
    assert cached(cache) == 0
    assert cached(cache) > 2000
    assert file_in(cache) == file


def test_a_place_that_cannot_be_written_is_not_mentioned(tmp_path):
    (tmp_path / "file").write_text("no directory can be made under this")
    run = subprocess.run(
        command("-c", PLAIN, tmp_path / "file" / "cache"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("[0.0, 2.0] 0\n", "")


@pytest.mark.timeout(900)
def test_many_first_imports_at_once(tmp_path):
    """``FIRST_IMPORTS=100`` runs a hundred of them, which takes 16 GiB and minutes."""
    cache = tmp_path / "cache"
    runs = [
        subprocess.Popen(
            command("-c", PLAIN, cache),
            env=environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(int(os.environ.get("FIRST_IMPORTS", "4")))
    ]
    try:
        outputs = [run.communicate(timeout=800)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert [output for output in outputs if not output.startswith("[0.0, 2.0] ")] == []
    assert file_in(cache).name.startswith("mxnet-operators-")
    assert cached(cache) > 2000


def scipy_loads_submodules_at_once():
    """Tell whether SciPy is here in a version that is not put off: one before 1.9."""
    try:
        version = importlib.metadata.version("scipy")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) < (1, 9)


def test_scipy_and_requests_are_loaded_when_they_are_used(filled):
    code = BEGIN + (
        "loaded = lambda *names: [name for name in names if name in sys.modules]\n"
        "a = mx.nd.array([[0, 1]])\n"
        "print(loaded('scipy', 'requests', 'numpy.testing'))\n"
        "import mxnet.gluon.utils as utils, requests\n"
        "print(utils.requests.get is requests.get, isinstance(utils.requests, type(sys)))\n"
        "try:\n"
        "    import scipy.sparse\n"
        "except ImportError:\n"
        "    print('none')\n"
        "else:\n"
        "    b = a.tostype('csr').asscipy()\n"
        "    print(type(b) is scipy.sparse.csr_matrix, mx.nd.array(b).stype,\n"
        "          mx.nd.sparse.csr_matrix(b).asnumpy().tolist())\n"
    )
    first, second, third = python("-c", code, filled).splitlines()
    expected = []
    if scipy_loads_submodules_at_once():
        expected.append("scipy")
    # NumPy before 1.19 loads its test tools itself, and SciPy before 1.9 loads them.
    assert first in (str(expected), str([*expected, "numpy.testing"]))
    assert second == "True True"
    assert third in ("True csr [[0.0, 1.0]]", "none")


def test_onnx_is_loaded_when_a_converter_runs(filled):
    pytest.importorskip("onnx")
    code = BEGIN + (
        "from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph\n"
        "print('onnx' in sys.modules, len(MXNetGraph.registry_[12]) > 100)\n"
        "node = {'name': 'out', 'inputs': []}\n"
        "(made,) = MXNetGraph.registry_[12]['tanh'](node, outputs_lookup=[])\n"
        "print('onnx' in sys.modules, made.op_type)\n"
    )
    assert python("-c", code, filled).split() == ["False", "True", "True", "Tanh"]


def test_the_command_fills_the_cache_next_to_the_package(tmp_path):
    package = SOURCE / "sagemaker_mxnet_toolkit"
    copy = tmp_path / "site" / "sagemaker_mxnet_toolkit"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    variables = {"PYTHONPATH": str(copy.parent), "HOME": str(tmp_path)}
    path = pathlib.Path(python("-m", "sagemaker_mxnet_toolkit.compatibility", **variables).strip())
    assert path.parent == copy / "compatibility" / "__pycache__"
    code = (
        "from sagemaker_mxnet_toolkit import compatibility as c; c.install(); import mxnet; "
        "print(c.status().cached)"
    )
    assert int(python("-c", code, **variables)) > 2000
