"""A worker: answers the frames of the HTTP front until the connection is closed."""

import contextlib
import os
import random
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, List, Mapping, NoReturn, Optional

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.inference import Response

if TYPE_CHECKING:
    from sagemaker_mxnet_serving.worker.service import ModelSettings, Service

_REASON = 2000
_DETAIL = 8000


def run(
    connection: socket.socket, settings: "ModelSettings", service: "Optional[Service]"
) -> NoReturn:
    """Run a worker in a process that was forked for it, until it ends.

    Its first frame is a greeting with the key ``ready``, and with ``model`` (the description) or,
    if the model cannot be loaded, ``reason``, ``detail`` and ``kind`` (a value of ``FailureKind``).

    Args:
        connection: to the HTTP front.
        settings: the model, which is loaded here if there is no ``service``.
        service: the model, if it was loaded before the fork.
    """
    status = 1
    try:
        if service is None:
            service = _load(connection, settings)
        else:
            _reseed()
        if service is not None:
            _greet(connection, {"ready": True, "model": dict(service.describe())})
            _serve(connection, service)
            status = 0
    except ConnectionError:  # the front has ended
        status = 0
    except SystemExit as error:
        print(f"worker {os.getpid()}: the script raised {error!r}; exiting", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Exit handlers of the parent process must not run here.
        os._exit(status)


def _load(connection: socket.socket, settings: "ModelSettings") -> "Optional[Service]":
    from sagemaker_mxnet_serving.worker import service  # imports MXNet

    pid = os.getpid()
    try:
        loaded = service.load(settings)
        loaded.warm_up()
    except service.ModelError as error:
        exit_if_forked(pid)
        reason, _, detail = str(error).partition("\n")
        failure = {
            "reason": reason[:_REASON],
            "detail": detail[-_DETAIL:],
            "kind": error.kind.value,
        }
        _greet(connection, {"ready": False, **failure})
        return None
    exit_if_forked(pid)
    return loaded


def _reseed() -> None:
    """Reseed the random generators, so that each worker has random numbers of its own."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _greet(connection: socket.socket, greeting: Mapping[str, Any]) -> None:
    worker_frames.send(connection, worker_frames.encode([(greeting, ())]))


def _serve(connection: socket.socket, service: "Service") -> None:
    pid = os.getpid()
    while True:
        items = worker_frames.receive(connection)
        if items is None:
            return
        requests = [worker_frames.to_request(item) for item in items]
        responses: List[Response] = service.predict(requests)
        exit_if_forked(pid)
        worker_frames.send(
            connection,
            worker_frames.encode(list(map(worker_frames.from_response, requests, responses))),
        )


def exit_if_forked(pid: int) -> None:
    """End this process if a function of the script forked it, and returned in it too.

    It has the sockets of its parent, and its responses would be taken for the parent's.

    Args:
        pid: the process id before the script was called.
    """
    if os.getpid() == pid:
        return
    print(
        f"process {os.getpid()}: a function of the script forked, and returned in the child too; "
        "ending the child; call os._exit() in it, or use subprocess or multiprocessing",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def restore_signals() -> None:
    """Reset the signal handlers of the parent process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
