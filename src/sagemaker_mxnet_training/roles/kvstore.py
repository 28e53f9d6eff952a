"""A process of MXNet's kvstore: the scheduler or a server, as ``DMLC_ROLE`` says.

A module for ``processes.program``, with the user's script as its argument, if there is one.
``import mxnet`` with one of these roles would run the role inside the import and never return. Here
the native library is used directly (``MXKVStoreCreate``, ``MXKVStoreRunServer`` in MXNet 1.9.1's
``c_api.h``), which is all that a scheduler needs; a server imports the rest of MXNet when a worker
sends it an optimizer.

An optimizer that cannot be loaded or that raises ends the server with a reported failure. Under
``import mxnet`` Python prints "Exception ignored" and training goes on without its updates.
"""

import ast
import ctypes
import faulthandler
import importlib.util
import os
import pickle
import sys
import types
from typing import Any, Callable, Dict, List, NoReturn, Optional

from sagemaker_mxnet_toolkit import compatibility, tracebacks
from sagemaker_mxnet_toolkit.processes.child_report import (
    EXCEPTION,
    NETWORK,
    REQUIREMENTS,
    Report,
)
from sagemaker_mxnet_toolkit.settings.variables import FRESH, RESUME
from sagemaker_mxnet_training.roles.server_state import PREFIX, ServerState

_OPTIMIZER_COMMAND = 0
"""Command that ``KVStore.set_optimizer`` sends, its body the pickled optimizer (MXNet 1.9.1)."""

_CONTROLLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def main(arguments: List[str], report: Report) -> NoReturn:
    """Run the role until the workers end it, or until it fails."""
    # Before the library is loaded: its handler of crashes must not become the one to fall back on.
    faulthandler.enable()
    compatibility.install()
    if arguments:
        script = arguments[0]
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
        _make_definitions_available(script)
    failure = f"the kvstore {os.environ['DMLC_ROLE']} cannot run"
    kind = REQUIREMENTS
    try:
        library = ctypes.CDLL(_library_path(), ctypes.RTLD_LOCAL)
        _report_native_crashes()
        library.MXGetLastError.restype = ctypes.c_char_p
        store = ctypes.c_void_p()
        kind = NETWORK  # it binds its port, and calls the scheduler
        _check(library, library.MXKVStoreCreate(b"dist", ctypes.byref(store)))
        controller = _CONTROLLER(_controller(store, report))
        report.event("started")
        kind = EXCEPTION
        if os.environ["DMLC_ROLE"] == "server" and os.environ.get(RESUME, FRESH) != FRESH:
            # The optimizer comes at once: import what it needs while the worker does.
            _import_mxnet()
        _check(library, library.MXKVStoreRunServer(store, controller, None))
    except Exception as error:
        _fail(report, failure, error, kind)
    # Nothing is left to do, and the store's destructor is of no use to anyone.
    sys.stdout.flush()
    os._exit(0)


def _library_path() -> str:
    """Return the path of MXNet's native library, without importing MXNet."""
    spec = importlib.util.find_spec("mxnet")
    if spec is None or spec.origin is None:
        raise ImportError(
            "mxnet is not installed in " + sys.executable + "; the kvstore is part of it"
        )
    # A build tree keeps its library elsewhere: the variable is MXNet's own (mxnet/libinfo.py).
    path = os.environ.get("MXNET_LIBRARY_PATH", "")
    if os.path.isfile(path):
        return path
    return os.path.join(os.path.dirname(spec.origin), "libmxnet.so")


def _report_native_crashes() -> None:
    """Let a native crash end the process by its own signal, with the Python stack printed.

    The library installs a handler of its own, after which a SIGSEGV ends with exit status 255.
    """
    faulthandler.disable()
    faulthandler.enable()


def _check(library: ctypes.CDLL, result: int) -> None:
    if result != 0:
        raise RuntimeError(library.MXGetLastError().decode("utf-8", "replace").strip())


def _controller(store: ctypes.c_void_p, report: Report) -> Callable[[int, bytes, Any], None]:
    # MXNet's own object around the store. There is one for good: its destructor frees the store,
    # and every worker of a job may send an optimizer.
    kvstores: List[Any] = []
    state = ServerState()

    def command(number: int, body: bytes, _: Any) -> None:
        if number != _OPTIMIZER_COMMAND:
            return
        if body.startswith(PREFIX.encode()):
            try:
                state.carry_out(body, kvstores[0].rank if kvstores else -1)
            except BaseException as error:
                _fail(report, "the server's part of a checkpoint cannot be restored", error)
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
    # With its role in the environment, importing mxnet would start a second server in here.
    role = os.environ.pop("DMLC_ROLE")
    try:
        import mxnet  # noqa: PLC0415
    finally:
        os.environ["DMLC_ROLE"] = role
    _report_native_crashes()
    return mxnet


def _updater(
    mxnet: Any, optimizer: Any, report: Report, state: ServerState
) -> Callable[[Any, Any, Any], None]:
    update = mxnet.optimizer.get_updater(optimizer)
    state.follow(update)
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


def _fail(report: Report, what: str, error: BaseException, kind: str = EXCEPTION) -> NoReturn:
    trace = tracebacks.text(error)
    report.failed(f"{tracebacks.summary(error)} ({what})", trace, kind)
    sys.stderr.write(f"{trace}\n")
    sys.stderr.flush()
    # Back in the native library the exception would be dropped and the server would go on.
    os._exit(1)


def _make_definitions_available(script: str) -> None:
    """Let an optimizer class that the user's script defines be found on the server.

    The worker pickles such a class by name, as ``__main__.MyOptimizer``. When that name is looked
    up in this process, the script's imports, functions, classes and plain constants are executed,
    and nothing else: its training code must not run here.
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
            raise AttributeError(f"{script} defines no {name}") from None

    # PEP 562: a module's own __getattr__ answers for names that it does not have. The module is a
    # new one, so that no name of this program hides one of the script.
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
            # An import for the training alone may fail here, and a definition may need what was
            # left out: only the name that is looked up matters.
            failed = failed or error
    if failed is not None:
        print(f"kvstore server: reading {script}: {failed!r}", file=sys.stderr)


def _is_definition(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)):
        return True
    if isinstance(statement, ast.Try):
        return all(_is_definition(inner) for inner in statement.body)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        return not any(isinstance(node, ast.Call) for node in ast.walk(statement.value))
    return False
