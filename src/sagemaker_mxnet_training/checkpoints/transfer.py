"""Transfers parts of a checkpoint between the processes of a job, by HTTP.

The first host's worker runs a server while a checkpoint is written or restored, on the address of
the job's kvstore and a port that the kernel selects. The other processes get the address, the port
and a random token through the kvstore (``server_state``):

- ``GET /NAME`` downloads a part of the checkpoint to resume from.
- ``PUT /NAME`` uploads a server's part of the checkpoint that is being written.
- ``POST /NAME`` reports why a server has no part to upload.

The kvstore itself cannot transfer parts: commands are sent to all servers, and with ``dist_sync`` a
key needs pushes of all workers. Hosts do not share a disk.

Parts are not encrypted, like all data of the kvstore: the token protects from other processes, not
from someone who reads the network. A part that is shorter than its ``Content-Length`` is an error.
"""

import contextlib
import hmac
import http.client
import http.server
import io
import queue
import secrets
import socket
import socketserver
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, Tuple

from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CHUNK, CheckpointError, Member

TIMEOUT_S = 60.0
"""Timeout in seconds for connecting, and for sending or receiving the next bytes."""

TURN_S = 600.0
"""Seconds that an upload may wait for its turn, since parts are written one after the other."""

GREETING_S = 10.0
"""Timeout in seconds for a complete request line with all headers."""

CAUSE_FIRST_S = 2.0
"""Seconds to wait before a broken connection is reported as a failure.

The process at the other end has likely died and is the cause. Its connections close a few
milliseconds before its supervisor notices, and the cause should be reported first.
"""

Find = Callable[[str], Tuple[int, Iterable[bytes]]]
"""Returns the size and the content of a part by its name, or raises ``KeyError``."""


class TransferError(CheckpointError):
    """A part was not received. A restart may help."""

    kind = FailureKind.EXCEPTION


class Endpoint(NamedTuple):
    """Address and token of a ``PartServer``. In JSON it is a list."""

    address: str
    port: int
    token: str


class PartServer(socketserver.ThreadingTCPServer):
    """A threaded server for the other processes of the job. It is a context manager.

    Args:
        address: the address to listen on.
        find: finds the parts to download, if there are any.

    Raises:
        OSError: it cannot listen.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, find: Optional[Find] = None) -> None:
        super().__init__((address, 0), _Request)
        self.endpoint = Endpoint(address, int(self.server_address[1]), secrets.token_hex(16))
        self.find = find
        self.uploads: queue.Queue[_Request] = queue.Queue()
        self.closed = False
        serve = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        serve.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and close the connections of pending uploads."""
        self.shutdown()
        self.server_close()
        self.closed = True
        self.close_uploads()

    def close_uploads(self) -> None:
        """Close the connections of uploads that nobody has collected."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.uploads.get_nowait().hang_up()

    def collect(self, names: Iterable[str]) -> Iterator[Member]:
        """Yield uploaded parts in the order of arrival, until all ``names`` have arrived.

        Each must be consumed before the next, since the content is read from the connection.

        Raises:
            TransferError: no part has arrived for ``TIMEOUT_S`` seconds, a part is truncated, or
                its sender reports a failure.
        """
        missing = set(names)
        while missing:
            try:
                upload = self.uploads.get(timeout=TIMEOUT_S)
            except queue.Empty:
                text = f"{', '.join(sorted(missing))} was not received within {TIMEOUT_S:g} s"
                raise TransferError(text) from None
            try:
                name = upload.path[1:]
                if name in missing:
                    missing.remove(name)
                    yield name, upload.content(name)
            finally:
                upload.consumed.set()

    def handle_error(self, *_: object) -> None:
        """Ignore errors of connections, which clients notice themselves."""


class _Request(http.server.BaseHTTPRequestHandler):
    """One request, in its own thread."""

    server: PartServer
    timeout = TIMEOUT_S

    def setup(self) -> None:
        super().setup()
        self.consumed = threading.Event()
        # ``timeout`` applies to each read, this timer to the complete request.
        self._greeting = threading.Timer(GREETING_S, self.hang_up)
        self._greeting.daemon = True
        self._greeting.start()

    def finish(self) -> None:
        self._greeting.cancel()
        super().finish()

    def hang_up(self) -> None:
        """Close the connection, and only then end the request, which otherwise would succeed."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.consumed.set()

    def do_GET(self) -> None:
        """Send a part."""
        if not self._authorized():
            return
        try:
            assert self.server.find is not None
            size, chunks = self.server.find(self.path[1:])
        except KeyError:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(chunk)

    def do_PUT(self) -> None:
        """Pass the content to ``PartServer.collect``, and wait until it is consumed."""
        if self._authorized():
            self.server.uploads.put(self)
            if self.server.closed:  # its request arrived too late for ``close``
                self.server.close_uploads()
            self.consumed.wait(TURN_S)
            self.send_response(200)
            self.end_headers()

    do_POST = do_PUT

    def content(self, name: str) -> Iterator[bytes]:
        """Yield the content of an upload.

        Raises:
            TransferError: it is truncated, or reports a failure.
        """
        left = int(self.headers["Content-Length"])
        with _cause_first(name):
            if self.command == "POST":
                reason = self.rfile.read(left).decode("utf-8", "replace")
                raise TransferError(f"{name}: {reason}")
            while left:
                chunk = self.rfile.read(min(left, CHUNK))
                if not chunk:
                    raise EOFError("it was truncated")
                left -= len(chunk)
                yield chunk

    def log_message(self, *_: object) -> None:
        """Do not log requests."""

    def _authorized(self) -> bool:
        expected = _headers(self.server.endpoint)["Authorization"]
        received = self.headers.get("Authorization", "")
        if hmac.compare_digest(received.encode(), expected.encode()):
            self._greeting.cancel()
            return True
        self.send_error(403)
        return False


def upload(endpoint: Endpoint, name: str, content: bytes) -> None:
    """Upload a part.

    Raises:
        TransferError: the upload failed.
    """
    _request(endpoint, "PUT", name, content)


def report_failure(endpoint: Endpoint, name: str, reason: str) -> None:
    """Report why there is no part to upload.

    Raises:
        TransferError: the report could not be sent.
    """
    _request(endpoint, "POST", name, reason[:1000].encode("utf-8", "replace"))


def download(endpoint: Endpoint, name: str) -> bytes:
    """Download a part.

    Raises:
        TransferError: the part does not exist, or the download failed.
    """
    return _request(endpoint, "GET", name)


def _request(endpoint: Endpoint, method: str, name: str, content: bytes = b"") -> bytes:
    connection = http.client.HTTPConnection(
        endpoint.address, endpoint.port, timeout=TIMEOUT_S, blocksize=CHUNK
    )
    with contextlib.closing(connection), _cause_first(name):
        connection.connect()
        connection.sock.settimeout(TIMEOUT_S if method == "GET" else TURN_S)
        headers = {**_headers(endpoint), "Content-Length": str(len(content))}
        # http.client sends a file in blocks, each with its own timeout.
        connection.request(method, f"/{name}", io.BytesIO(content), headers)
        response = connection.getresponse()
        if response.status == 200:
            return response.read()
    raise TransferError(f"{name}: the first host responded with HTTP status {response.status}")


def _headers(endpoint: Endpoint) -> Dict[str, Any]:
    return {"Authorization": f"Bearer {endpoint.token}"}


@contextlib.contextmanager
def _cause_first(name: str) -> Iterator[None]:
    """Convert the error of a broken connection, after waiting for its cause to be reported."""
    try:
        yield
    except (OSError, EOFError, http.client.HTTPException) as error:
        time.sleep(CAUSE_FIRST_S)
        raise TransferError(f"{name} was not received: {error or repr(error)}") from error
