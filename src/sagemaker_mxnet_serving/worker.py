"""A worker: predicts what the HTTP front sends, one frame after another, until it is closed."""

import contextlib
import os
import random
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, List, Mapping, NoReturn, Optional

from sagemaker_mxnet_serving import frames
from sagemaker_mxnet_serving.messages import Response

if TYPE_CHECKING:
    from sagemaker_mxnet_serving.service import ModelSettings, Service

_REASON = 2000
_DETAIL = 8000


def run(
    connection: socket.socket, settings: "ModelSettings", service: "Optional[Service]"
) -> NoReturn:
    """Be a worker, in a process that was forked for it.

    The first frame that it sends is a greeting, with the keys ``ready``, and ``reason``, ``detail``
    and ``kind`` (a value of ``FailureKind``) where the model cannot be loaded.

    Args:
        connection: to the HTTP front.
        settings: the model, to be loaded here if there is no ``service``.
        service: the model, if it has been loaded before the fork.
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
    except ConnectionError:  # the front has gone
        status = 0
    except SystemExit as error:
        print(f"worker {os.getpid()}: the script ends its process: {error!r}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # What the process that this was forked from wants done at its exit is not this one's.
        os._exit(status)


def _load(connection: socket.socket, settings: "ModelSettings") -> "Optional[Service]":
    from sagemaker_mxnet_serving import service  # noqa: PLC0415  (imports MXNet)

    try:
        loaded = service.load(settings)
        loaded.warm_up()
    except service.ModelError as error:
        reason, _, detail = str(error).partition("\n")
        failure = {
            "reason": reason[:_REASON],
            "detail": detail[-_DETAIL:],
            "kind": error.kind.value,
        }
        _greet(connection, {"ready": False, **failure})
        return None
    return loaded


def _reseed() -> None:
    """Give this worker random numbers of its own."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _greet(connection: socket.socket, greeting: Mapping[str, Any]) -> None:
    frames.send(connection, frames.encode([(greeting, ())]))


def _serve(connection: socket.socket, service: "Service") -> None:
    while True:
        items = frames.receive(connection)
        if items is None:
            return
        requests = [frames.to_request(item) for item in items]
        responses: List[Response] = service.predict(requests)
        frames.send(connection, frames.encode([frames.from_response(each) for each in responses]))


def restore_signals() -> None:
    """Undo what the process that this was forked from does about signals."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
