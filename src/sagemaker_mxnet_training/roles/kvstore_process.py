"""A process of MXNet's kvstore: the scheduler or a server, according to ``DMLC_ROLE``.

A module for ``processes.program``, with the user's script as its argument, if there is one.
``import mxnet`` would run the role inside the import and never return. Instead, the native library
is called directly (``MXKVStoreCreate``, ``MXKVStoreRunServer`` in MXNet 1.9.1's ``c_api.h``). A
server imports MXNet when a worker sends an optimizer.

An optimizer that cannot be loaded, or that raises, fails the server. With ``import mxnet`` Python
would print "Exception ignored", and training would continue without updates.
"""

import ast
import ctypes
import importlib.util
import os
import pickle
import sys
import types
from typing import Any, Callable, Dict, List, NoReturn, Optional

from sagemaker_mxnet_toolkit import compatibility, tracebacks
from sagemaker_mxnet_toolkit.compatibility.kvstore import ORDER
from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.processes import own_process
from sagemaker_mxnet_toolkit.processes.child_report import Report, print_whole
from sagemaker_mxnet_toolkit.settings.variables import FRESH, RESUME
from sagemaker_mxnet_training.checkpoints.server_state import ServerState

_OPTIMIZER_COMMAND = 0
"""Command of ``KVStore.set_optimizer``, whose body is the pickled optimizer (MXNet 1.9.1)."""

_CONTROLLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def main(arguments: List[str], report: Report) -> NoReturn:
    """Run the role until the workers stop it, or until it fails."""
    own_process.report_native_crashes()
    compatibility.install()
    if arguments:
        script = arguments[0]
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
        _make_definitions_available(script)
    failure = f"the kvstore {os.environ['DMLC_ROLE']} cannot run"
    kind = FailureKind.REQUIREMENTS
    try:
        library = ctypes.CDLL(_library_path(), ctypes.RTLD_LOCAL)
        own_process.report_native_crashes()
        library.MXGetLastError.restype = ctypes.c_char_p
        store = ctypes.c_void_p()
        kind = FailureKind.NETWORK  # this binds a port and connects to the scheduler
        _check(library, library.MXKVStoreCreate(b"dist", ctypes.byref(store)))
        controller = _CONTROLLER(_controller(store, report))
        report.event("started")
        kind = FailureKind.EXCEPTION
        if os.environ["DMLC_ROLE"] == "server" and os.environ.get(RESUME, FRESH) != FRESH:
            # A resumed worker sends the optimizer soon, so import MXNet in the meantime.
            _import_mxnet()
        _check(library, library.MXKVStoreRunServer(store, controller, None))
    except Exception as error:
        _fail(report, failure, error, kind)
    # Skip the destructor of the store.
    sys.stdout.flush()
    os._exit(0)


def _library_path() -> str:
    """Return the path of MXNet's native library, without importing MXNet."""
    spec = importlib.util.find_spec("mxnet")
    if spec is None or spec.origin is None:
        raise ImportError(
            "mxnet is not installed in " + sys.executable + "; the kvstore is part of it"
        )
    # MXNet's own variable, for build trees (mxnet/libinfo.py).
    path = os.environ.get("MXNET_LIBRARY_PATH", "")
    if os.path.isfile(path):
        return path
    return os.path.join(os.path.dirname(spec.origin), "libmxnet.so")


def _check(library: ctypes.CDLL, result: int) -> None:
    if result != 0:
        raise RuntimeError(library.MXGetLastError().decode("utf-8", "replace").strip())


def _controller(store: ctypes.c_void_p, report: Report) -> Callable[[int, bytes, Any], None]:
    # MXNet's object for the store. It is created once, since its destructor frees the store and
    # each worker may send an optimizer.
    kvstores: List[Any] = []
    state = ServerState()

    def command(number: int, body: bytes, _: Any) -> None:
        if number != _OPTIMIZER_COMMAND:
            return
        if body.startswith(ORDER.encode()):
            try:
                state.execute(body, kvstores[0].rank if kvstores else -1)
            except BaseException as error:
                _fail(report, "a command of the first host's worker failed", error)
            return
        try:
            mxnet = _import_mxnet()
            if not kvstores:
                kvstores.append(mxnet.kvstore.KVStore(store))
            kvstores[0]._set_updater(_updater(mxnet, pickle.loads(body), report, state))
        except BaseException as error:
            _fail(report, "the optimizer that the worker sent cannot be loaded", error)

    return command


def _import_mxnet() -> Any:
    # With DMLC_ROLE set, importing mxnet would start a second server.
    role = os.environ.pop("DMLC_ROLE")
    try:
        import mxnet
    finally:
        os.environ["DMLC_ROLE"] = role
    own_process.report_native_crashes()
    return mxnet


def _updater(
    mxnet: Any, optimizer: Any, report: Report, state: ServerState
) -> Callable[[Any, Any, Any], None]:
    update = mxnet.optimizer.get_updater(optimizer)
    state.set_updater(update)
    stepped = False

    def guarded(key: Any, gradient: Any, weight: Any) -> None:
        nonlocal stepped
        try:
            state.before_update(key, weight)
            update(key, gradient, weight)
        except BaseException as error:
            name = type(optimizer).__name__
            _fail(report, f"the optimizer {name} failed to update key {key!r}", error)
        if not stepped:
            stepped = True
            report.event("stepped")

    return guarded


def _fail(
    report: Report, what: str, error: BaseException, kind: FailureKind = FailureKind.EXCEPTION
) -> NoReturn:
    trace = tracebacks.text(error)
    report.failed(f"{tracebacks.summary(error)} ({what})", trace, kind)
    sys.stderr.write(f"{trace}\n")
    sys.stderr.flush()
    # The native library would drop the exception, and the server would continue.
    os._exit(1)


def _make_definitions_available(script: str) -> None:
    """Make an optimizer class of the user's script available on the server.

    The worker pickles such a class by name, as ``__main__.MyOptimizer``. When that name is looked
    up, only the script's imports, functions, classes and simple constants are executed, not its
    training code.
    """
    definitions: Dict[str, Any] = {}

    def lookup(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not definitions:
            _execute_definitions(script, definitions)
        try:
            return definitions[name]
        except KeyError:
            raise AttributeError(f"{script} does not define {name}") from None

    # A module-level __getattr__ (PEP 562). The module is new, so that names of this program do not
    # hide those of the script.
    module = types.ModuleType("__main__")
    module.__getattr__ = lookup  # type: ignore[method-assign]
    sys.modules["__main__"] = module


def _execute_definitions(script: str, namespace: Dict[str, Any]) -> None:
    namespace.update(__name__="__main__", __file__=script, __builtins__=__builtins__)
    with open(script, "rb") as file:
        tree = ast.parse(file.read(), script)
    failed: Optional[Exception] = None
    for statement in tree.body:
        if not _is_definition(statement):
            continue
        code = compile(ast.Module([statement], []), script, "exec")
        try:
            exec(code, namespace)
        except Exception as error:
            # Imports and definitions that only the training needs may fail here.
            failed = failed or error
    if failed is not None:
        print_whole(f"kvstore server: reading {script}: {failed!r}")


def _is_definition(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
        return True
    if isinstance(statement, ast.Try):
        return all(_is_definition(inner) for inner in statement.body)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        return not any(isinstance(node, ast.Call) for node in ast.walk(statement.value))
    return False
