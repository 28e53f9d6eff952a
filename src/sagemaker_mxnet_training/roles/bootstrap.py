"""Runs the user's Python script as ``__main__`` and reports to the supervisor how it ended.

A module for ``processes.program``, with the arguments ``script PATH [ARGUMENT...]`` or ``module
NAME [ARGUMENT...]``. The script sees what it would see without us: its own ``__main__``,
``sys.argv`` and ``sys.path``, the same tracebacks, the same exit status.

Two things differ, and are why this file exists. A failure is reported with its type, message and
traceback, so that nobody has to guess it from text. And it ends the process at once: the MXNet
worker would otherwise wait in its destructor for all the other workers to finish too
(``KVStoreDist::~KVStoreDist`` in MXNet 1.9.1, the exit barrier), for ever.
"""

import atexit
import contextlib
import faulthandler
import gc
import io
import os
import signal
import sys
import threading
import types
from importlib.machinery import SourceFileLoader
from typing import List, NoReturn, Optional

from sagemaker_mxnet_toolkit import compatibility, tracebacks
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.processes.child_report import EXCEPTION, EXIT_STATUS, Report
from sagemaker_mxnet_training.roles import optimizer_states, signal_handlers
from sagemaker_mxnet_training.roles.open_kvstores import OpenKVStores

_TRACEBACK_LIMIT = 8192
_EXIT_HANDLERS_SECONDS = 3.0


def main(arguments: List[str], report: Report) -> None:
    """Run what the arguments name."""
    kind, target, *rest = arguments
    run = _Run(report)
    compatibility.install()
    _watch_native_crashes()
    signal_handlers.watch(run.end)
    compatibility.after_import(optimizer_states.explain)
    # What is loaded so far lives as long as the process: the collector need not look at it, which
    # it would once more when the script has ended.
    gc.freeze()
    run.begin()
    try:
        if kind == "script":
            _run_script(target, rest)
        else:
            sys.argv = [target, *rest]
            sys.path.insert(0, os.getcwd())
            import runpy  # noqa: PLC0415 - of no use to a script

            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise  # a clean exit is Python's own matter
        if os.getpid() != run.pid:
            _end_forked_child(error)
        run.end(error)


class _Run:
    """One run of the script, from its start to the report of its end."""

    def __init__(self, report: Report) -> None:
        self.pid = os.getpid()
        self._report = report
        self._kvstores = OpenKVStores()
        # Exit handlers run last in, first out: these after the script's own and before MXNet's. The
        # report comes first, since the kvstores wait for the other workers.
        self._register()
        compatibility.after_import(self._register)

    def begin(self) -> None:
        """Report that the script is about to run."""
        self._report.event("started")

    def _register(self) -> None:
        for handler in (self._kvstores.close, self._finished):
            atexit.unregister(handler)
            atexit.register(handler)

    def _finished(self) -> None:
        if os.getpid() == self.pid:
            self._report.event("finished")

    def end(self, error: BaseException) -> NoReturn:
        """End the process at once, as Python does for what nobody caught; report a failure."""
        status = 1
        if isinstance(error, SystemExit):
            status = _exit_status(error)
            if status != 0:
                is_message = isinstance(error.code, str)
                reason = "exited with the message {!r}" if is_message else "sys.exit({!r})"
                self._report.failed(reason.format(error.code), kind=EXIT_STATUS)
        else:
            _print_and_report(error, self._report)
        if status != 0:
            atexit.unregister(self._finished)
        atexit.unregister(self._kvstores.close)  # the others may never close theirs
        _run_exit_handlers()
        if status == 0:
            self._finished()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(self.pid, signal.SIGINT)
        os._exit(status)


def _run_script(path: str, arguments: List[str]) -> None:
    path = os.path.abspath(path)
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __annotations__={},
        __builtins__=__builtins__,
        __cached__=None,
        __file__=path,
        __loader__=SourceFileLoader("__main__", path),
    )
    sys.modules["__main__"] = module
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _exit_status(exit_: SystemExit) -> int:
    """Return the status that Python gives to a ``SystemExit``; print its message as Python does."""
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF
    print(exit_.code, file=sys.stderr)
    return 1


def _end_forked_child(error: BaseException) -> NoReturn:
    """End a child that the script forked as Python would: it is not the script."""
    if not isinstance(error, Exception):
        raise error
    sys.excepthook(type(error), error, _own_frames_removed(error.__traceback__))
    sys.exit(1)


def _print_and_report(error: BaseException, report: Report) -> None:
    error.__traceback__ = _own_frames_removed(error.__traceback__)
    detail = tracebacks.text(error)[-_TRACEBACK_LIMIT:]
    # The report comes first: what is printed may have to wait for a slow reader.
    kind = error.kind.value if isinstance(error, JobError) else EXCEPTION
    report.failed(tracebacks.summary(error), detail, kind)
    with contextlib.suppress(Exception):
        sys.excepthook(type(error), error, error.__traceback__)


def _own_frames_removed(trace: Optional[types.TracebackType]) -> Optional[types.TracebackType]:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _run_exit_handlers() -> None:
    """Run the script's exit handlers and write its output, unless one of them waits for MXNet."""

    def run() -> None:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()

    handlers = threading.Thread(target=run, daemon=True)
    handlers.start()
    handlers.join(_EXIT_HANDLERS_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _watch_native_crashes() -> None:
    """Let a native crash print the Python stack and then end the process by its own signal.

    MXNet 1.9.1 installs a handler of its own on import, after which a SIGSEGV ends the process
    with exit status 255 and no word of Python.
    """
    faulthandler.enable()

    def enable_again() -> None:
        faulthandler.disable()
        faulthandler.enable()

    compatibility.after_import(enable_again)
