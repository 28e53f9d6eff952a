"""Horovod's rendezvous: a key-value store by HTTP (PUT, GET, DELETE) with the workers' addresses.

A module for ``processes.program``, with the arguments ``--fd NUMBER --allow ADDRESS[,ADDRESS...]``.
The socket is inherited and already listens, so that no worker can connect too early.

Horovod 0.28.1's client (``common/gloo/http_store.cc``) opens a connection for each request, polls a
missing key every 10 ms, and gives up after three failures. n workers send about 8 n^2 requests; one
loop without threads handles several thousand requests per second.
"""

import argparse
import contextlib
import re
import selectors
import socket
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.processes.child_report import Report, write_line

MAX_CONNECTIONS = 512
"""Maximum number of connections with an incomplete request; the oldest is closed."""

MAX_HEAD_BYTES = 4096
MAX_VALUE_BYTES = 2**20
"""A value has about 140 bytes for each worker."""

MAX_TOTAL_BYTES = 2**28

_ACCEPT_AT_ONCE = 64
_LENGTH = re.compile(rb"\r\nContent-Length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Payload Too Large"}


class Request(NamedTuple):
    """One request: the method, the two parts of its path ``/scope/key``, and its body."""

    method: str
    scope: str
    key: str
    body: bytes = b""


class Store:
    """Values by scope and key, of bounded size."""

    def __init__(self) -> None:
        self._scopes: Dict[str, Dict[str, bytes]] = {}
        self._size = 0

    def answer(self, request: Request) -> Tuple[int, bytes]:
        """Handle a request; return an HTTP status and a body."""
        if request.method == "GET":
            value = self._scopes.get(request.scope, {}).get(request.key)
            return (404, b"") if value is None else (200, value)
        if request.method == "PUT":
            return self._put(request), b""
        if request.method == "DELETE":
            self._leave(request.scope, request.key)
            return 200, b""
        return 400, b""

    def _put(self, request: Request) -> int:
        if self._size + len(request.body) > MAX_TOTAL_BYTES:
            return 413
        scope = self._scopes.setdefault(request.scope, {})
        self._size += len(request.body) - len(scope.get(request.key, b""))
        scope[request.key] = request.body
        return 200

    def _leave(self, scope: str, rank: str) -> None:
        """Delete the values of a worker in a scope, after it has connected to all others.

        A later ``hvd.init()`` uses the same scope, and must not find old addresses.
        """
        values = self._scopes.get(scope, {})
        for key in (rank, f"rank_{rank}"):
            self._size -= len(values.pop(key, b""))
        if not values:
            self._scopes.pop(scope, None)


def parse(data: bytes) -> Optional[Request]:
    """Parse a request; return ``None`` if it is incomplete.

    Raises:
        ValueError: it is malformed or too large.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")
        return None
    head, body = data[: end + 2], data[end + 4 :]
    words = head[: head.find(b"\r\n")].decode("latin-1").split(" ")
    path = words[1].split("/", 2) if len(words) == 3 else []
    if len(path) != 3 or path[0] or not (path[1] and path[2]) or end > MAX_HEAD_BYTES:
        raise ValueError("malformed head")
    length = _LENGTH.search(head)
    size = int(length.group(1)) if length else 0
    if size > MAX_VALUE_BYTES:
        raise ValueError("the value is too large")
    return None if len(body) < size else Request(words[0], path[1], path[2], body[:size])


class Server:
    """Handles the requests of the job's hosts.

    Args:
        listener: a listening socket.
        allowed: IP addresses of the job's hosts; connections from others are closed.
    """

    def __init__(self, listener: socket.socket, allowed: FrozenSet[str]) -> None:
        self._listener = listener
        self._allowed = allowed
        self._store = Store()
        self._selector = selectors.DefaultSelector()
        self._received: Dict[socket.socket, bytes] = {}  # in the order of their arrival
        self._rejected: Set[str] = set()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def turn(self) -> None:
        """Wait for events, and handle them."""
        for key, _ in self._selector.select():
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj in self._received:
                assert isinstance(key.fileobj, socket.socket)
                self._read(key.fileobj)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, (address, _) = self._listener.accept()
            except OSError:  # none is left, or the client has disconnected
                return
            if address not in self._allowed:
                connection.close()
                self._log_rejection(address)
                continue
            connection.setblocking(False)
            self._received[connection] = b""
            self._selector.register(connection, selectors.EVENT_READ)
            self._read(connection)  # most requests have already arrived
            if len(self._received) > MAX_CONNECTIONS:
                self._close(next(iter(self._received)))

    def _read(self, connection: socket.socket) -> None:
        try:
            block = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            block = b""
        data = self._received[connection] = self._received[connection] + block
        try:
            request = parse(data)
        except ValueError:
            self._respond(connection, 400, b"")
            return
        if request is not None:
            self._respond(connection, *self._store.answer(request))
        elif not block:
            self._close(connection)

    def _respond(self, connection: socket.socket, status: int, body: bytes) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            # A value may be larger than the socket's buffer. The client reads it at once.
            connection.settimeout(1.0)
            connection.sendall(head.encode() + body)
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        del self._received[connection]
        self._selector.unregister(connection)
        connection.close()

    def _log_rejection(self, address: str) -> None:
        if address not in self._rejected and len(self._rejected) < 10:
            self._rejected.add(address)
            write_line(f"Horovod's rendezvous: rejected {address}, which is not a host of this job")


def main(arguments: List[str], report: Report) -> None:
    """Serve until a signal ends this process."""
    parser = argparse.ArgumentParser(prog="rendezvous", description="Serve Horovod's rendezvous.")
    parser.add_argument("--fd", type=int, required=True, help="a listening socket")
    parser.add_argument("--allow", required=True, help="IP addresses, with commas between them")
    options = parser.parse_args(arguments)
    server = Server(socket.socket(fileno=options.fd), frozenset(options.allow.split(",")))
    report.event("started")
    while True:
        server.turn()
