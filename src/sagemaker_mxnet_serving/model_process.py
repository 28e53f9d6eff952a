"""The process of one model: it loads the model once, and forks the workers, which share it.

A module for ``processes.program``. The HTTP front hands it a socket (``--control``) on which
messages are JSON objects. The front asks for a worker with ``{"fork": SLOT}``. It is told
``{"worker": PID}``, with a connection to the worker as an attached file descriptor, and later
``{"ended": PID, "status": N}`` with a return code as in ``subprocess``. When the socket is closed,
the process ends with its workers.
"""

import argparse
import array
import ctypes
import dataclasses
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, List, Mapping, NoReturn, Optional, Set

from sagemaker_mxnet_serving import worker
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.child_report import Report

if TYPE_CHECKING:
    from sagemaker_mxnet_serving.service import ModelSettings, Service

_PR_SET_PDEATHSIG = 1
MESSAGE_LIMIT = 4096
"""Bytes of a message."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How the workers of a model are made.

    Attributes:
        model: the fields of ``ModelSettings``.
        shared: the model is loaded before workers are forked, and not by each of them.
        gpus: how many GPUs workers have in turn.
    """

    model: Mapping[str, Any]
    shared: bool
    gpus: int = 0


class ModelProcess:
    """Forks workers as asked, and tells of their ends.

    Args:
        control: the socket of the HTTP front.
        options: how workers are made.
        settings: the model.
        service: the loaded model, if workers share it.
    """

    def __init__(
        self,
        control: socket.socket,
        options: Options,
        settings: "ModelSettings",
        service: "Optional[Service]",
    ) -> None:
        self._control = control
        self._options = options
        self._settings = settings
        self._service = service
        self._children: Set[int] = set()

    def run(self) -> None:
        """Do so until the front closes the socket."""
        wakeup, wake = socket.socketpair()
        for end in (wakeup, wake):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        # The control socket has the front's number for it, which may be beyond select's 1,023.
        poll = select.poll()
        for end in (self._control, wakeup):
            poll.register(end, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if wakeup.fileno() in ready:
                wakeup.recv(4096)
                self._reap()
            if self._control.fileno() in ready:
                message = self._control.recv(MESSAGE_LIMIT)
                if not message:
                    return
                self._fork(int(json.loads(message)["fork"]))

    def _fork(self, slot: int) -> None:
        front, own = socket.socketpair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            worker.restore_signals()
            die_with_parent(parent)
            front.close()
            self._control.close()
            if self._options.gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = str(slot % self._options.gpus)
            worker.run(own, self._settings, self._service)
        own.close()
        self._children.add(pid)
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [front.fileno()]))]
        self._control.sendmsg([json.dumps({"worker": pid}).encode()], attached)
        front.close()

    def _reap(self) -> None:
        # Children that the user's code has started are its own to wait for.
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.remove(pid)
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self._control.send(json.dumps({"ended": pid, "status": code}).encode())


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process when its parent ends (prctl(2), PR_SET_PDEATHSIG).

    Args:
        parent: the parent's process id; if it has ended already, this process ends here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _load(settings: "ModelSettings") -> "Service":
    """Load the model and predict once; ``ModelError`` if that is impossible."""
    from sagemaker_mxnet_serving import service  # noqa: PLC0415  (imports MXNet)

    loaded = service.load(settings)
    # Before the fork, so that workers share what the first prediction allocates.
    loaded.warm_up()
    return loaded


def _exit_at_once(status: int) -> NoReturn:
    """End without waiting for threads that the user's code has started; nothing is left to do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(arguments: List[str], report: Report) -> None:
    """Load the model that the command line tells, and be its process."""
    parser = argparse.ArgumentParser(prog="model_process", description="Serve one model.")
    parser.add_argument("--control", required=True, type=int, metavar="FD")
    parser.add_argument("--parent", required=True, type=int, metavar="PID")
    parser.add_argument("--options", required=True, metavar="JSON")
    given = parser.parse_args(arguments)
    die_with_parent(given.parent)
    control = socket.socket(fileno=given.control)
    control.set_inheritable(False)
    options = Options(**json.loads(given.options))
    from sagemaker_mxnet_serving.service import ModelSettings  # noqa: PLC0415

    settings = ModelSettings(**options.model)
    try:
        service = _load(settings) if options.shared else None
    except Exception as error:
        program.report_exception(report, error)
        _exit_at_once(1)
    # Collecting in a worker would write to the pages that it shares.
    gc.collect()
    gc.freeze()
    report.event("started")
    ModelProcess(control, options, settings, service).run()
    os.killpg(0, signal.SIGKILL)
