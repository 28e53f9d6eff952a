"""The process of one model: it loads the model once, and forks workers, which share it.

A module for ``processes.program``. Messages on its control socket are JSON objects. The HTTP front
requests a worker with ``{"fork": SLOT}``. The response is ``{"worker": PID}``, with a connection to
the worker as an attached file descriptor, or ``{"worker": null, "error": REASON}`` if the fork
failed. ``{"ended": PID, "status": N}`` reports the end of a worker, with a return code as in
``subprocess``. When the socket is closed, the process ends with its workers.
"""

import argparse
import array
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, List, Mapping, NoReturn, Optional, Set

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.inference import ModelSettings
from sagemaker_mxnet_serving.worker import worker_process
from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.failure import start_error_reason
from sagemaker_mxnet_toolkit.processes import own_process, program
from sagemaker_mxnet_toolkit.processes.child_report import Report

if TYPE_CHECKING:
    from sagemaker_mxnet_serving.worker.loading import LoadedModel


class ModelProcess:
    """Forks workers on request, and reports their ends.

    Args:
        control: the control socket.
        settings: the model.
        model: the loaded model, if workers share it.
    """

    def __init__(
        self,
        control: socket.socket,
        settings: ModelSettings,
        model: "Optional[LoadedModel]",
    ) -> None:
        self._control = control
        self._settings = settings
        self._model = model
        self._children: Set[int] = set()

    def run(self) -> None:
        """Run until the front closes the socket."""
        wakeup, wake = socket.socketpair()
        for end in (wakeup, wake):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        # The number of the control socket may be beyond select's limit of 1,023.
        poll = select.poll()
        for end in (self._control, wakeup):
            poll.register(end, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if wakeup.fileno() in ready:
                wakeup.recv(4096)
                self._reap()
            if self._control.fileno() in ready:
                message = self._control.recv(worker_frames.MESSAGE_LIMIT)
                if not message:
                    return
                self._fork(int(json.loads(message)["fork"]))

    def _fork(self, slot: int) -> None:
        try:
            front, own = socket.socketpair()
        except OSError as error:
            self._send({"worker": None, "error": start_error_reason(error)})
            return
        parent = os.getpid()
        with front, own:
            try:
                pid = os.fork()
            except OSError as error:
                self._send({"worker": None, "error": start_error_reason(error)})
                return
            if pid == 0:
                worker_process.restore_signals()
                own_process.die_with_parent(parent)
                front.close()
                self._control.close()
                if self._settings.gpus:
                    os.environ["CUDA_VISIBLE_DEVICES"] = str(slot % self._settings.gpus)
                worker_process.run(own, self._settings, self._model)
            self._children.add(pid)
            self._send({"worker": pid}, front.fileno())

    def _send(self, message: Mapping[str, Any], *descriptors: int) -> None:
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._control.sendmsg([json.dumps(message).encode()], attached if descriptors else [])

    def _reap(self) -> None:
        # The script waits for its own children.
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.remove(pid)
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self._send({"ended": pid, "status": code})


def _exit_at_once(status: int) -> NoReturn:
    """Exit without waiting for threads of the script."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(arguments: List[str], report: Report) -> None:
    """Load the model that the command line describes, and fork its workers."""
    parser = argparse.ArgumentParser(prog="model_process", description="Serve one model.")
    parser.add_argument("--control", required=True, type=int, metavar="FD")
    parser.add_argument("--parent", required=True, type=int, metavar="PID")
    parser.add_argument("--settings", required=True, metavar="JSON")
    options = parser.parse_args(arguments)
    own_process.die_with_parent(options.parent)
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    settings = ModelSettings(**json.loads(options.settings))
    own_process.report_native_crashes()
    compatibility.after_import(own_process.report_native_crashes)
    pid = os.getpid()
    try:
        model = worker_process.load(settings) if settings.shared else None
    except Exception as error:
        worker_process.exit_if_forked(pid)
        program.report_exception(report, error)
        _exit_at_once(1)
    worker_process.exit_if_forked(pid)
    threads = model.started_threads() if model is not None else []
    if threads:  # the front starts another process, whose workers each load the model
        report.event("threads", names=threads)
        _exit_at_once(0)
    # A garbage collection in a worker would write to shared pages.
    gc.collect()
    gc.freeze()
    report.event("started")
    ModelProcess(control, settings, model).run()
    os.killpg(0, signal.SIGKILL)
