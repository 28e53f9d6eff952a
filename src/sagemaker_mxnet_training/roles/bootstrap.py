"""Runs the user's Python script as ``__main__`` and reports to the supervisor how it ended.

A module for ``processes.program``, with the arguments ``script PATH [ARGUMENT...]`` or ``module
NAME [ARGUMENT...]``. The script has its own ``__main__``, ``sys.argv`` and ``sys.path``, the usual
tracebacks, and the usual exit status.

There are two differences. A failure is reported with its type, message and traceback. And it ends
the process at once: the destructor of an MXNet worker would otherwise wait for all other workers
(``KVStoreDist::~KVStoreDist`` in MXNet 1.9.1, the exit barrier), possibly forever.
"""

import atexit
import contextlib
import gc
import io
import os
import re
import runpy
import signal
import sys
import threading
import types
from importlib.machinery import SourceFileLoader
from typing import Callable, Iterator, List, NoReturn, Optional

from sagemaker_mxnet_toolkit import compatibility, tracebacks
from sagemaker_mxnet_toolkit.failure import FailureKind, JobError
from sagemaker_mxnet_toolkit.processes import own_process
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_toolkit.settings.variables import TERMINAL
from sagemaker_mxnet_training.roles import horovod_worker, signal_handlers
from sagemaker_mxnet_training.roles.open_kvstores import OpenKVStores

_TRACEBACK_LIMIT = 8192
_EXIT_HANDLERS_SECONDS = 3.0


def main(arguments: List[str], report: Report) -> None:
    """Run the script or module."""
    kind, target, *rest = arguments
    script = _Script(report)
    compatibility.install()
    own_process.report_native_crashes()
    compatibility.after_import(own_process.report_native_crashes)
    script.ended_by = signal_handlers.watch(script.end)
    _debug_on(os.environ.get(TERMINAL, ""))
    if "HOROVOD_RANK" in os.environ:
        horovod_worker.write_whole_lines()
        horovod_worker.report_threads(report)
    # Exclude everything that is loaded from garbage collection, also from that at exit.
    gc.freeze()
    report.event("started")
    try:
        with script.completing():
            if kind == "script":
                _run_script(target, rest)
            else:
                sys.argv = [target, *rest]
                sys.path.insert(0, os.getcwd())
                runpy.run_module(target, run_name="__main__", alter_sys=True)
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            script.report_left(error)
            raise  # a normal exit
        if os.getpid() != script.pid:
            _end_forked_child(error)
        script.end(error)


class _Script:
    """One run of the script, from its start to the report of its end."""

    def __init__(self, report: Report) -> None:
        self.pid = os.getpid()
        self.ended_by: Callable[[BaseException], int] = lambda _: 0
        self._report = report
        self._kvstores = OpenKVStores()
        # Exit handlers run in reverse order: these after the script's and before MXNet's. The
        # report is sent first, since closing the kvstores waits for the other workers.
        self._register()
        compatibility.after_import(self._register)

    @contextlib.contextmanager
    def completing(self) -> Iterator[None]:
        """Wait for the operations of MXNet that the script in the block has started.

        A script that does not read its last results would otherwise end before they are computed.
        Errors would be lost, Horovod would drop the last steps, and with a kvstore the other
        workers may never take their part in them. After a signal nothing is waited for, since the
        others may not take their part any more.

        Raises:
            mxnet.base.MXNetError: an operation failed, and the script has not read its result.
        """
        try:
            yield
        except SystemExit as error:
            if not error.code and not self.ended_by(error):
                self._complete()
            raise
        self._complete()

    def _complete(self) -> None:
        arrays = sys.modules.get("mxnet.ndarray.ndarray")
        if arrays is not None and os.getpid() == self.pid:
            arrays.waitall()

    def report_left(self, error: BaseException) -> None:
        """Report that the script has not finished, if a handler of SIGTERM or SIGINT ended it."""
        number = self.ended_by(error)
        if number in (signal.SIGTERM, signal.SIGINT) and os.getpid() == self.pid:
            self._report.event("left", signal=number)

    def _register(self) -> None:
        for handler in (self._kvstores.close, self._finished):
            atexit.unregister(handler)
            atexit.register(handler)

    def _finished(self) -> None:
        if os.getpid() == self.pid:
            self._report.event("finished")

    def end(self, error: BaseException) -> NoReturn:
        """Exit at once, with the status of an uncaught exception, and report a failure."""
        if horovod_worker.ended_by_stop(error):
            # Not a failure. MXNet's exit handler would raise the error again.
            self._finished()
            _flush_output()
            os._exit(0)
        status = 1
        if isinstance(error, SystemExit):
            status = _exit_status(error)
            if status != 0:
                lost_peer = horovod_worker.lost_peer(error)
                kind = FailureKind.PEER if lost_peer else FailureKind.EXIT_STATUS
                self._report.failed(_exit_reason(error), kind=kind)
        else:
            _print_and_report(error, self._report)
        if status != 0:
            atexit.unregister(self._finished)
        atexit.unregister(self._kvstores.close)  # other workers may never close theirs
        _run_exit_handlers()
        if status == 0:
            self.report_left(error)
            self._finished()
        if isinstance(error, KeyboardInterrupt):
            if threading.current_thread() is not threading.main_thread():
                os._exit(128 + signal.SIGINT)  # only the main thread can set handlers
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
    """Return the exit status of a ``SystemExit``; print its message, as Python does."""
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF
    print(exit_.code, file=sys.stderr)
    return 1


def _exit_reason(exit_: SystemExit) -> str:
    """Return why a script has exited with a status, including the message of argparse."""
    if isinstance(exit_.code, str):
        return f"exited with the message {exit_.code!r}"
    reason = f"sys.exit({exit_.code!r})"
    parser = getattr(sys.modules.get("argparse"), "ArgumentParser", ())
    for frame in _frames(exit_.__traceback__):
        known = frame.f_locals
        if frame.f_code.co_name == "error" and isinstance(known.get("self"), parser):
            return f"{reason}: {known.get('message')}"
    if exit_.__context__ is None or exit_.__suppress_context__:
        return reason
    return f"{reason} after {tracebacks.summary(exit_.__context__)}"


def _missing_channel(error: BaseException) -> str:
    """Return the job's channels, if a script has failed because of a missing one.

    A missing variable causes a ``KeyError``, or another exception that mentions ``None``.
    """
    text = tracebacks.summary(error)
    if not isinstance(error, KeyError):
        if "None" not in text:
            return ""
        paths = {frame.f_code.co_filename for frame in _frames(error.__traceback__)}
        text = "".join(map(_source, paths))
    missing = sorted(set(re.findall(r"\bSM_CHANNEL_\w+", text)).difference(os.environ))
    if not missing:
        return ""
    names = ", ".join(re.findall(r'"([^"]+)"', os.environ.get("SM_CHANNELS", ""))) or "none"
    return f"; {', '.join(missing)} is not set: the job's channels are: {names}"


def _source(path: str) -> str:
    """Return the text of a file of the user's code; empty for other files."""
    with contextlib.suppress(OSError):
        if path.startswith(os.getcwd() + os.sep):
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
    return ""


def _frames(trace: Optional[types.TracebackType]) -> Iterator[types.FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _end_forked_child(error: BaseException) -> NoReturn:
    """End a process that the script has forked, as Python would."""
    if not isinstance(error, Exception):
        raise error
    sys.excepthook(type(error), error, _own_frames_removed(error.__traceback__))
    sys.exit(1)


def _print_and_report(error: BaseException, report: Report) -> None:
    error.__traceback__ = _own_frames_removed(error.__traceback__)
    detail = tracebacks.text(error)[-_TRACEBACK_LIMIT:]
    # Report first, since printing may block.
    kind = error.kind if isinstance(error, JobError) else FailureKind.EXCEPTION
    if horovod_worker.lost_peer(error):
        kind = FailureKind.PEER
    reason = tracebacks.summary(error) + _missing_channel(error)
    if "duplicate init of key" in reason:  # kvstore_local.h of MXNet 1.9.1
        reason += "; trainers cannot share a kvstore: pass its name to each, as in kvstore='device'"
    report.failed(reason, detail, kind)
    with contextlib.suppress(Exception):
        sys.excepthook(type(error), error, error.__traceback__)


def _own_frames_removed(trace: Optional[types.TracebackType]) -> Optional[types.TracebackType]:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _run_exit_handlers() -> None:
    """Run the script's exit handlers with a timeout, and flush its output."""

    def run() -> None:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()

    handlers = threading.Thread(target=run, daemon=True)
    with contextlib.suppress(RuntimeError):  # the limit on threads is reached
        handlers.start()
        handlers.join(_EXIT_HANDLERS_SECONDS)
    _flush_output()


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _debug_on(terminal: str) -> None:
    """Make ``breakpoint()`` use the terminal of ``local``, if there is one."""
    if not terminal or "PYTHONBREAKPOINT" in os.environ:
        return

    def debug() -> None:
        import pdb

        # The terminal belongs to another session, but can be read and written.
        streams = [open(terminal, mode, opener=_without_control) for mode in ("r", "w")]  # noqa: SIM115
        pdb.Pdb(stdin=streams[0], stdout=streams[1]).set_trace(sys._getframe(1))

    sys.breakpointhook = debug


def _without_control(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOCTTY)
