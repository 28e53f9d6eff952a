"""The process of one model: it loads the model once, and forks the workers, which share it.

Started as a program by the HTTP front, with a socket (``--control``) on which messages are JSON
objects. The front asks for a worker with ``{"fork": SLOT}``. It is told ``{"worker": PID}``, with
a connection to the worker as an attached file descriptor, and later ``{"ended": PID, "status": N}``
with a return code as in ``subprocess``. When the socket is closed, all ends.
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
from typing import TYPE_CHECKING, Any, Mapping, NoReturn, Optional, Set

if __name__ == "__main__":
    # The directory of this file is no place to import from.
    del sys.path[0]

from sagemaker_mxnet_serving import worker
from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.processes.child_report import Report, open_report

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
        while True:
            ready, _, _ = select.select([self._control, wakeup], [], [])
            if wakeup in ready:
                wakeup.recv(4096)
                self._reap()
            if self._control in ready:
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


def _load(report: Report, settings: "ModelSettings") -> "Service":
    from sagemaker_mxnet_serving import service  # noqa: PLC0415  (imports MXNet)

    try:
        loaded = service.load(settings)
        # Before the fork, so that workers share what the first prediction allocates.
        loaded.warm_up()
    except service.ModelError as error:
        reason, _, detail = str(error).partition("\n")
        _fail(report, reason, detail)
    except MemoryError:
        _fail(report, "there is not enough memory for the model", "")
    return loaded


def _fail(report: Report, reason: str, detail: str) -> NoReturn:
    kind = FailureKind.MODEL.value
    report.event("failed", reason=reason, detail=detail, kind=kind)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of the user's would keep the process; there is nothing left to tidy.
    os._exit(1)


def main() -> None:
    """Load the model that the command line tells, and be its process."""
    parser = argparse.ArgumentParser(prog="model_process", description="Serve one model.")
    parser.add_argument("--control", required=True, type=int, metavar="FD")
    parser.add_argument("--parent", required=True, type=int, metavar="PID")
    parser.add_argument("--options", required=True, metavar="JSON")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    report = open_report()
    control = socket.socket(fileno=arguments.control)
    control.set_inheritable(False)
    options = Options(**json.loads(arguments.options))
    from sagemaker_mxnet_serving.service import ModelSettings  # noqa: PLC0415

    settings = ModelSettings(**options.model)
    service = _load(report, settings) if options.shared else None
    # Collecting in a worker would write to the pages that it shares.
    gc.collect()
    gc.freeze()
    report.event("started")
    ModelProcess(control, options, settings, service).run()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
