"""Moves state between the processes of a job: one TCP connection for each part.

The worker of the first host listens while a checkpoint is written or restored, on the address that
the job's kvstore uses and a port that the kernel picks. Others learn address, port and a random
token through the kvstore (``roles.server_state``) and connect to give or to fetch one part.

The kvstore itself cannot carry this: command bodies go to every server, and a key that all servers
answer for needs pushes of all workers in ``dist_sync``. Other hosts' disks are not shared.

A connection starts with the token and a header (a length of 4 bytes, JSON); a part is its bytes and
their SHA-256. Like all that the kvstore sends, none of it is encrypted: the token keeps strangers
out, not somebody who reads the network.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, Tuple, Union

from sagemaker_mxnet_training.checkpoints.archive import CHUNK
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError

TIMEOUT = 60.0
"""Seconds that a peer may take to connect, or to send or take the next bytes."""

TURN = 600.0
"""Seconds that a peer may wait to give its part: the parts are taken one after the other."""

CAUSE_FIRST = 2.0
"""Seconds that a process waits before it fails over a connection that the other side closed.

The other process is most likely gone, and is what failed: its end is to be known first, although
its connections are closed some milliseconds before it can be waited for.
"""

_GREETING = 10.0  # seconds that whoever connects has to say who it is
_TOKEN = 32
_HEADER_LIMIT = 16 * 1024
_DIGEST = hashlib.sha256().digest_size

Part = Tuple[int, Iterable[bytes]]
"""Size in bytes, and content."""


class TransferError(CheckpointError):
    """A part did not arrive. The text says whose and why."""


@dataclass(frozen=True)
class Place:
    """Where a process listens, and what lets others in."""

    address: str
    port: int
    token: str

    def to_json(self) -> Dict[str, Any]:
        """Return the place as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Place":
        """Read what ``to_json`` gave."""
        return cls(str(value["address"]), int(value["port"]), str(value["token"]))


class Listener:
    """Listens for the other processes of the job. It is a context manager.

    Args:
        address: the address to listen on.

    Raises:
        OSError: when that is not possible.
    """

    def __init__(self, address: str) -> None:
        token = secrets.token_hex(_TOKEN // 2)
        self._socket = socket.create_server((address, 0), backlog=128)
        self.place = Place(address, int(self._socket.getsockname()[1]), token)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        # A thread that waits in accept() would not notice close() alone.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def collect(self, names: Iterable[str]) -> Iterator[Tuple[str, Iterable[bytes]]]:
        """Yield each part that is given, in the order of arrival, until all ``names`` were.

        Each must be consumed before the next.

        Raises:
            TransferError: when one is missing after ``TIMEOUT`` seconds without a new one, is cut
                short or altered, or when its sender says that it cannot be had.
        """
        missing = set(names)
        while missing:
            with self._accept(time.monotonic() + TIMEOUT, missing) as (peer, header):
                name = str(header.get("give"))
                if name not in missing:
                    continue
                missing.remove(name)
                if "error" in header:
                    raise TransferError(f"{name}: {header['error']}")
                yield name, _receive(peer, name, int(header["size"]))

    def serve(self, part: Callable[[str], Part]) -> None:
        """Hand out parts to all who ask, in threads, until ``close``.

        Args:
            part: returns a part by its name; raises ``KeyError`` when there is none.
        """
        threading.Thread(target=self._serve, args=(part,), daemon=True).start()

    def _serve(self, part: Callable[[str], Part]) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(peer, part), daemon=True).start()

    def _answer(self, peer: socket.socket, part: Callable[[str], Part]) -> None:
        # Whoever asked notices by itself that the answer is missing or cut short.
        with peer, contextlib.suppress(OSError, ValueError, CheckpointError):
            name = str(self._greet(peer).get("fetch"))
            try:
                size, chunks = part(name)
            except KeyError:
                _send_header(peer, {"error": f"there is no {name}"})
                return
            _send_header(peer, {"size": size})
            _send(peer, chunks)

    @contextlib.contextmanager
    def _accept(self, deadline: float, missing: Iterable[str]) -> Iterator[Any]:
        """Give the next peer that knows the token, and its header."""
        while True:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                peer, _ = self._socket.accept()
            except socket.timeout:
                raise TransferError(
                    f"{', '.join(sorted(missing))} did not arrive within {TIMEOUT:g} s"
                ) from None
            with peer:
                try:
                    header = self._greet(peer)
                except (OSError, ValueError, TransferError):
                    continue  # a stranger
                yield peer, header
                return

    def _greet(self, peer: socket.socket) -> Dict[str, Any]:
        peer.settimeout(_GREETING)
        if not hmac.compare_digest(_exactly(peer, _TOKEN), self.place.token.encode()):
            raise TransferError("a stranger connected")
        header = _receive_header(peer)
        peer.settimeout(TIMEOUT)
        return header


def give(place: Place, name: str, content: bytes) -> None:
    """Give a part to whoever listens.

    Raises:
        OSError: when it cannot be sent.
    """
    with _connect(place) as peer:
        _send_header(peer, {"give": name, "size": len(content)})
        peer.settimeout(TURN)
        view = memoryview(content)
        _send(peer, (view[start : start + CHUNK] for start in range(0, len(view), CHUNK)))


def give_up(place: Place, name: str, reason: str) -> None:
    """Tell whoever listens why a part cannot be had.

    Raises:
        OSError: when it cannot be sent.
    """
    with _connect(place) as peer:
        _send_header(peer, {"give": name, "error": reason[:1000]})


def fetch(place: Place, name: str) -> bytes:
    """Fetch a part from whoever listens.

    Raises:
        OSError: when it cannot be had.
        TransferError: when there is none of that name, or it did not arrive whole.
    """
    with contextlib.ExitStack() as stack:
        with _cause_first():
            peer = stack.enter_context(_connect(place))
            _send_header(peer, {"fetch": name})
            header = _receive_header(peer)
        if "error" in header:
            raise TransferError(str(header["error"]))
        return b"".join(_receive(peer, name, int(header["size"])))


def _connect(place: Place) -> socket.socket:
    peer = socket.create_connection((place.address, place.port), timeout=TIMEOUT)
    peer.sendall(place.token.encode())
    return peer


def _send_header(peer: socket.socket, header: Mapping[str, Any]) -> None:
    payload = json.dumps(header).encode()
    peer.sendall(len(payload).to_bytes(4, "big") + payload)


def _receive_header(peer: socket.socket) -> Dict[str, Any]:
    length = int.from_bytes(_exactly(peer, 4), "big")
    if length > _HEADER_LIMIT:
        raise TransferError("a header is too long")
    header = json.loads(_exactly(peer, length))
    if not isinstance(header, dict):
        raise TransferError("a header is not a JSON object")
    return header


def _send(peer: socket.socket, chunks: Iterable[Union[bytes, memoryview]]) -> None:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        peer.sendall(chunk)
    peer.sendall(digest.digest())


def _receive(peer: socket.socket, name: str, size: int) -> Iterator[bytes]:
    digest = hashlib.sha256()
    try:
        with _cause_first():
            while size:
                chunk = peer.recv(min(size, CHUNK))
                if not chunk:
                    raise TransferError(f"{name} was cut short")
                digest.update(chunk)
                size -= len(chunk)
                yield chunk
            if _exactly(peer, _DIGEST) != digest.digest():
                raise TransferError(f"{name} was altered on its way")
    except OSError as error:
        raise TransferError(f"{name} did not arrive: {error}") from error


@contextlib.contextmanager
def _cause_first() -> Iterator[None]:
    try:
        yield
    except (OSError, TransferError):
        time.sleep(CAUSE_FIRST)
        raise


def _exactly(peer: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = peer.recv(size - len(received))
        if not chunk:
            raise TransferError("the connection was closed")
        received += chunk
    return bytes(received)
