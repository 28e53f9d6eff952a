"""The compatibility layer's own behaviour, with small stand-ins for mxnet and real interpreters."""

import ctypes
import os
import pathlib
import subprocess
import sys
import types

import pytest

import sagemaker_mxnet_training
from sagemaker_mxnet_toolkit.compatibility import import_hook
from sagemaker_mxnet_toolkit.compatibility.numpy_view import version_numbers

SOURCE = pathlib.Path(sagemaker_mxnet_training.__file__).resolve().parents[1]
PTH = SOURCE / "sagemaker-mxnet-training.pth"


def run(code, *paths, **variables):
    """Run code in a separate interpreter, whose path begins with the given folders."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*paths, SOURCE)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def package(tmp_path):
    """Write a folder with a package mxnet of the given modules, and a small numpy."""

    def write(**modules):
        (tmp_path / "mxnet").mkdir()
        for name, text in {"__init__": "", **modules}.items():
            (tmp_path / "mxnet" / f"{name}.py").write_text(text)
        (tmp_path / "numpy.py").write_text(NUMPY)
        return tmp_path

    return write


NUMPY = """
__version__ = "2.5.0"
from types import SimpleNamespace
inf, nan = float("inf"), float("nan")
class generic: pass
def array(source, dtype=None): return ("array", source, dtype)
asarray = array
def prod(x): return ("prod", x)
def fromstring(*_): pass
lib = SimpleNamespace(array_utils=SimpleNamespace(normalize_axis_tuple=len))
"""
INSTALL = "from sagemaker_mxnet_toolkit import compatibility; compatibility.install(); "


def test_mxnet_sees_removed_names_and_others_do_not(package):
    folder = package(__init__="import numpy as np; seen = np.PZERO, np.product('x'), np.bool")
    result = run(
        INSTALL + "import mxnet, numpy; print(mxnet.seen, hasattr(numpy, 'PZERO'))", folder
    )
    assert result.stdout == "(0.0, ('prod', 'x'), <class 'bool'>) False\n", result.stderr


FROMSTRING = """
def fromstring(string, dtype=float, count=-1, *, sep="", like=None):
    if sep == "":
        raise ValueError("The binary mode of fromstring is removed")
    return ("text", string, dtype, count, sep)
class frombuffer:
    def __init__(self, *arguments, **options): self.given = arguments, options
    def copy(self): return ("bytes", *self.given)
"""


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("b'ab', int", "('bytes', (b'ab', <class 'int'>), {})"),
        ("b'ab', dtype=int, count=2", "('bytes', (b'ab',), {'dtype': <class 'int'>, 'count': 2})"),
        ("'ab', int, sep=''", "('bytes', (b'ab', <class 'int'>), {})"),
        ("'1 2', int, sep=' '", "('text', '1 2', <class 'int'>, -1, ' ')"),
    ],
)
def test_fromstring_reads_bytes_after_mxnet_was_imported(package, call, answer):
    folder = package(__init__="import numpy")
    (folder / "numpy.py").write_text(NUMPY + FROMSTRING)
    code = f"import mxnet, numpy; print(numpy.fromstring({call}))"
    result = run(INSTALL + code, folder)
    assert result.stdout.strip() == answer, result.stderr
    plain = run(code, folder, SAGEMAKER_MXNET_COMPATIBILITY="0")
    assert "ValueError" in plain.stderr or "text" in answer


def test_fromstring_of_a_numpy_that_reads_bytes_is_left_alone(package):
    folder = package(__init__="import numpy")
    (folder / "numpy.py").write_text(NUMPY.replace("2.5.0", "2.2.6") + FROMSTRING)
    code = (
        "import numpy; before = numpy.fromstring; import mxnet; print(numpy.fromstring is before)"
    )
    assert run(INSTALL + code, folder).stdout.strip() == "True"


def test_names_given_to_numpy_later_are_seen(package):
    folder = package(__init__="import numpy as np")
    code = "import mxnet, numpy; numpy.later = 1; print(mxnet.np.later, mxnet.np.__name__)"
    assert run(INSTALL + code, folder).stdout == "1 numpy\n"


def test_a_function_that_imports_numpy_sees_the_same(package):
    folder = package(__init__="def f():\n    import numpy\n    return numpy.NZERO")
    assert run(INSTALL + "import mxnet; print(mxnet.f())", folder).stdout == "-0.0\n"


def test_distutils_is_there_for_mxnet_alone(package):
    folder = package(
        __init__="from distutils.version import LooseVersion as V, StrictVersion as S\n"
        "order = V('1.17') < V('1.23.5') <= S('1.23.5') < V('2.0.0rc1') < S('10.0')"
    )
    code = "import mxnet, sys; print(mxnet.order, 'distutils' in sys.modules)"
    assert run(INSTALL + code, folder).stdout == "True False\n"


def test_a_failure_is_one_sentence_with_versions_and_its_cause(package):
    folder = package(__init__="import numpy; numpy.no_such_name")
    result = run(INSTALL + "import mxnet", folder)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: MXNet cannot be imported on CPython ")
    assert "with NumPy 2.5.0 (compatibility layer enabled): AttributeError: " in last
    assert "no_such_name" in last


def test_an_error_of_mxnet_itself_is_left_alone(package):
    folder = package(
        __init__="from . import base; raise base.MXNetError('port taken')",
        base="class MXNetError(RuntimeError): pass\nget_last_ffi_error = None",
    )
    last = run(INSTALL + "import mxnet", folder).stderr.splitlines()[-1]
    assert last == "mxnet.base.MXNetError: port taken"


def test_a_missing_mxnet_is_reported_as_ever(tmp_path):
    code = INSTALL + (
        "import sys; sys.path[:] = [p for p in sys.path if '-packages' not in p]; import mxnet"
    )
    last = run(code, tmp_path).stderr.splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named 'mxnet'"


@pytest.mark.parametrize("value", ["0", " 0 "])
def test_the_variable_switches_it_off(package, value):
    folder = package(__init__="import numpy; lent = hasattr(numpy, 'PZERO')")
    code = INSTALL + (
        "compatibility.after_import(lambda: print('called')); "
        "import mxnet; print(mxnet.lent, compatibility.status())"
    )
    result = run(code, folder, SAGEMAKER_MXNET_COMPATIBILITY=value)
    expected = "Status(enabled=False, installed=True, lent=(), repaired=(), cached=0)"
    assert result.stdout == f"called\nFalse {expected}\n", result.stderr


def test_any_other_value_leaves_it_on(package):
    folder = package(__init__="import numpy; lent = hasattr(numpy, 'PZERO')")
    result = run(
        INSTALL + "import mxnet; print(mxnet.lent)", folder, SAGEMAKER_MXNET_COMPATIBILITY=""
    )
    assert result.stdout == "True\n", result.stderr


def test_install_is_idempotent():
    code = INSTALL + (
        "import sys; before = len(sys.meta_path); compatibility.install(); "
        "print(len(sys.meta_path) - before, compatibility.status().installed)"
    )
    assert run(code).stdout == "0 True\n"


def test_callbacks_run_once_in_order_after_the_import(package):
    folder = package(__init__="from . import late", late="print('importing')")
    code = INSTALL + (
        "after = compatibility.after_import; after(lambda: print(1)); after(lambda: print(2)); "
        "import mxnet, importlib; importlib.reload(mxnet); after(lambda: print(3))"
    )
    assert run(code, folder).stdout.split() == ["importing", "1", "2", "3"]


def test_callbacks_do_not_run_when_the_import_fails(package):
    folder = package(__init__="1 / 0")
    code = INSTALL + "compatibility.after_import(lambda: print('called')); import mxnet"
    result = run(code, folder)
    assert (result.stdout, result.returncode) == ("", 1)


def test_byte_code_is_cached_and_used(package):
    folder = package(__init__="import numpy; seen = numpy.PZERO")
    code = INSTALL + "import mxnet; print(mxnet.__cached__, mxnet.seen)"
    cached = pathlib.Path(run(code, folder, PYTHONDONTWRITEBYTECODE="").stdout.split()[0])
    assert cached.is_file()
    source = folder / "mxnet" / "__init__.py"
    stamp = source.stat()
    # The same size and time as before: only the cache still knows the name.
    source.write_text(source.read_text().replace("PZERO", "wrong"))
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert run(code, folder).stdout.endswith(" 0.0\n")


def test_the_pth_file_loads_nothing_until_mxnet_is_imported(tmp_path, package):
    folder = package(__init__="import numpy; seen = numpy.PZERO")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / PTH.name).write_text(PTH.read_text())
    code = (
        f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r});  "
        "loaded = [m for m in ('numpy', 'sagemaker_mxnet_training') if m in sys.modules]; "
        "import mxnet; print(loaded, mxnet.seen)"
    )
    assert run(code, folder).stdout == "[] 0.0\n"


def test_the_pth_file_is_one_line_that_python_executes():
    lines = PTH.read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("import ")


@pytest.mark.parametrize("name, tested", [("NEWEST_PYTHON", (3, 7)), ("NEWEST_NUMPY", (2, 4))])
def test_the_untested_is_told_in_one_warning(package, name, tested):
    folder = package(__init__="import numpy")
    code = INSTALL + f"compatibility.import_hook.{name} = {tested}; import mxnet"
    warnings = [line for line in run(code, folder).stderr.splitlines() if "Warning" in line]
    assert len(warnings) == 1 and "MXNet 1.9.1 was not tested with CPython" in warnings[0]


def test_the_tested_is_not_warned_about(package):
    assert run(INSTALL + "import mxnet", package(__init__="import numpy")).stderr == ""


@pytest.mark.parametrize(
    "text, numbers",
    [("1.23.5", (1, 23, 5)), ("2.4.0rc1", (2, 4, 0)), ("2.0", (2, 0)), ("", ()), ("x", ())],
)
def test_versions_compare_by_their_leading_numbers(text, numbers):
    assert version_numbers(text) == numbers


DEFERRED = """
import sys
from sagemaker_mxnet_toolkit import compatibility
compatibility.install()
loaded = lambda: [name for name in sys.modules if name.partition(".")[0] in ("scipy", "requests")]
"""
NEW_SCIPY = (
    "def __getattr__(name):\n    import importlib; return importlib.import_module('scipy.' + name)"
)
CSR = "class csr_matrix: pass\nclass csr: csr_matrix = csr_matrix\nclass Other: pass"


@pytest.fixture
def user_of_scipy(package):
    """Write MXNet's module for sparse arrays, a SciPy, and requests."""

    def write(scipy=NEW_SCIPY):
        folder = package()
        for name in ("ndarray", "gluon"):
            (folder / "mxnet" / name).mkdir()
            (folder / "mxnet" / name / "__init__.py").write_text("import numpy\n")
        imports = "try:\n    import scipy.sparse as spsp\nexcept ImportError:\n    spsp = None\n"
        (folder / "mxnet" / "ndarray" / "sparse.py").write_text(imports)
        (folder / "mxnet" / "gluon" / "utils.py").write_text(
            "import requests\ndef download(): return requests.get('x')\n"
        )
        (folder / "requests.py").write_text("def get(url): return 'got ' + url\n")
        if scipy is not None:
            (folder / "scipy").mkdir()
            (folder / "scipy" / "__init__.py").write_text(scipy)
            (folder / "scipy" / "sparse.py").write_text(CSR)
        return folder

    return write


IMPORT = DEFERRED + "import mxnet.ndarray.sparse as sparse, mxnet.gluon.utils as utils\n"


def test_packages_are_loaded_when_mxnet_uses_them(user_of_scipy):
    code = IMPORT + (
        "print(loaded()); print(utils.download(), loaded()); "
        "print(sparse.spsp.Other.__module__, loaded())"
    )
    lines = run(code, user_of_scipy()).stdout.splitlines()
    expected = ["[]", "got x ['requests']", "scipy.sparse ['requests', 'scipy', 'scipy.sparse']"]
    assert lines == expected


def test_sparse_arrays_are_recognized_without_loading_scipy(user_of_scipy):
    code = IMPORT + (
        "of = lambda x: isinstance(x, sparse.spsp.csr.csr_matrix); print(of(1), loaded()); "
        "import scipy.sparse; print(of(1), of(scipy.sparse.csr_matrix()), of(scipy.sparse.Other()))"
    )
    assert run(code, user_of_scipy()).stdout.splitlines() == ["False []", "False True False"]


def test_what_is_changed_in_a_deferred_module_is_changed_for_all(user_of_scipy):
    code = IMPORT + (
        "from unittest.mock import patch\n"
        "import requests; whole = requests.get\n"
        "with patch('mxnet.gluon.utils.requests.get', lambda url: 'mine'):\n"
        "    print(utils.download(), requests.get('x'))\n"
        "requests.get = lambda url: 'other'; print(utils.download(), 'get' in dir(utils.requests))"
    )
    assert run(code, user_of_scipy()).stdout.splitlines() == ["mine mine", "other True"]


def test_a_loaded_package_is_used_as_it_is(user_of_scipy):
    code = DEFERRED + (
        "import requests, scipy.sparse, mxnet.ndarray.sparse as s, mxnet.gluon.utils as u; "
        "print(s.spsp is scipy.sparse, u.requests is requests)"
    )
    assert run(code, user_of_scipy()).stdout == "True True\n"


def test_a_missing_package_is_missed_at_the_import(user_of_scipy):
    code = DEFERRED + (
        "sys.modules['scipy'] = None; import mxnet.ndarray.sparse as s; print(s.spsp); "
        "sys.modules['requests'] = None; import mxnet.gluon.utils"
    )
    result = run(code, user_of_scipy(scipy=None))
    assert result.stdout == "None\n"
    assert "ModuleNotFoundError" in result.stderr.splitlines()[-1]


def test_scipy_whose_submodules_mxnet_loads_is_imported_eagerly(user_of_scipy):
    code = IMPORT + "import scipy; print(scipy.sparse is sparse.spsp)"
    assert run(code, user_of_scipy(scipy="")).stdout == "True\n"


def test_only_mxnet_is_given_stand_ins(user_of_scipy):
    code = IMPORT + "import requests; print(type(requests) is type(sys), requests.get('x'))"
    assert run(code, user_of_scipy()).stdout == "True got x\n"


@pytest.mark.parametrize(
    ("mpi_built", "controller", "expected"),
    [
        (0, None, ["local"]),
        (1, "gloo", ["local"]),
        (1, "mpi", ["local", "global"]),
        (1, None, ["local", "global"]),
    ],
)
def test_horovod_library_is_global_only_for_mpi(monkeypatch, mpi_built, controller, expected):
    loads = []

    def load(path, mode=ctypes.DEFAULT_MODE):
        loads.append("global" if mode == ctypes.RTLD_GLOBAL else "local")
        return types.SimpleNamespace(horovod_mpi_built=lambda: mpi_built)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.delenv("HOROVOD_CONTROLLER", raising=False)
    if controller is not None:
        monkeypatch.setenv("HOROVOD_CONTROLLER", controller)
    scope = {"__builtins__": {"__import__": import_hook._import_for_horovod}}
    exec('import ctypes; ctypes.CDLL("mpi_lib.so", ctypes.RTLD_GLOBAL)', scope)
    assert loads == expected
