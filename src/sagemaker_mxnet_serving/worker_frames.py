"""Frames between the HTTP front and the workers: a JSON header, and bodies.

A frame has the requests of one batch, or the responses to them in the same order; each has the
request's id. It consists of ``HEAD`` (length of the header, length of all bodies), the header, and
the bodies. The header is a list of objects; the key ``size`` of each is the length of its body.
"""

import socket
import struct
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, cast

import orjson

from sagemaker_mxnet_serving.inference import Request, Response

MESSAGE_LIMIT = 4096
"""Bytes of a message on the control socket of a model process."""

HEAD = struct.Struct(">IQ")
HEADER_LIMIT = 512 * 1024 * 1024
"""Bytes of a header. The heads of a batch have at most 64 MiB, and are longer in JSON, which
escapes characters."""

BODY_LIMIT = 2**31
"""Bytes of all bodies of a frame."""

_SMALL = 64 * 1024
"""Bytes of a frame that is received by one call."""

Item = Tuple[Mapping[str, Any], bytes]


class FrameError(Exception):
    """The peer sent something that is not a valid frame."""


def encode(items: Sequence[Tuple[Mapping[str, Any], Sequence[bytes]]]) -> List[bytes]:
    """Return the pieces of a frame. Bodies, of one piece or several, are not copied."""
    fields = [{**item, "size": sum(map(len, body))} for item, body in items]
    header = orjson.dumps(fields)
    total = sum(item["size"] for item in fields)
    if len(header) > HEADER_LIMIT or total > BODY_LIMIT:
        raise FrameError(f"the frame is too large: {len(header)} + {total} bytes")
    return [HEAD.pack(len(header), total) + header, *(part for _, body in items for part in body)]


def lengths(head: bytes) -> Tuple[int, int]:
    """Return the lengths in a head: of the header, and of all bodies."""
    header, body = HEAD.unpack(head)
    if header > HEADER_LIMIT or body > BODY_LIMIT:
        raise FrameError(f"the frame is too large: {header} + {body} bytes")
    return header, body


def decode(header: bytes, body: bytes) -> List[Item]:
    """Return the items of a frame."""
    try:
        fields = orjson.loads(header)
        sizes = [item["size"] for item in fields]
    except (ValueError, TypeError, KeyError) as error:
        raise FrameError("the header is not a list of objects") from error
    if any(type(size) is not int or size < 0 for size in sizes) or sum(sizes) != len(body):
        raise FrameError("the lengths of the bodies do not match the header")
    if len(fields) == 1:
        return [(fields[0], body)]
    items, start = [], 0
    for item, size in zip(fields, sizes):
        items.append((item, body[start : start + size]))
        start += size
    return items


class FrameReader:
    """Assembles frames from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._pieces: List[bytes] = []
        self._buffered = 0
        self._lengths: Optional[Tuple[int, int]] = None

    def feed(self, data: bytes) -> Iterator[List[Item]]:
        """Add data; yield the items of each frame that is complete."""
        if not self._buffered and self._lengths is None and len(data) >= HEAD.size:
            header, body = lengths(data[: HEAD.size])
            start = HEAD.size + header
            if len(data) == start + body:  # exactly one frame, the usual case
                yield decode(data[HEAD.size : start], data[start:])
                return
        self._pieces.append(data)
        self._buffered += len(data)
        while True:
            if self._lengths is None:
                if self._buffered < HEAD.size:
                    return
                self._lengths = lengths(self._take(HEAD.size))
            header, body = self._lengths
            if self._buffered < header + body:
                return
            self._lengths = None
            yield decode(self._take(header), self._take(body))

    def _take(self, size: int) -> bytes:
        if not size:
            return b""
        data = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        self._pieces = []  # frees them before the next copy: a body may be large
        if len(data) > size:
            self._pieces.append(data[size:])
        self._buffered -= size
        return data[:size]


def receive(connection: socket.socket) -> Optional[List[Item]]:
    """Wait for the next frame; return ``None`` if the peer has closed the connection.

    The peer sends a frame only after the one before was answered.
    """
    data = connection.recv(_SMALL)
    while len(data) < HEAD.size:
        more = connection.recv(_SMALL)
        if not more:
            return None
        data += more
    header, body = lengths(data[: HEAD.size])
    start = HEAD.size + header
    rest = _read(connection, start - len(data))
    if rest is None:
        return None
    data += rest
    # A body may be large: it is received into the memory that the script gets, without a copy.
    first = data[start:]
    if len(first) == body:
        content = bytearray(first)
    else:
        content = bytearray(body)
        content[: len(first)] = first
        left = memoryview(content)[len(first) :]
        while left:
            size = connection.recv_into(left, 0, socket.MSG_WAITALL)
            if not size:
                return None
            left = left[size:]
    # Typed as bytes, as Python did with every bytearray before PEP 688.
    return decode(data[HEAD.size : start], cast(bytes, content))


def _read(connection: socket.socket, size: int) -> Optional[bytes]:
    """Wait for this many bytes, if any; return ``None`` if the peer has closed the connection."""
    pieces = []
    while size > 0:
        piece = connection.recv(size, socket.MSG_WAITALL)
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def send(connection: socket.socket, pieces: Iterable[bytes]) -> None:
    """Send a frame."""
    pending = [memoryview(piece) for piece in pieces if piece]
    while pending:
        # One call takes at most IOV_MAX pieces.
        sent = connection.sendmsg(pending[:512])
        while pending and sent >= len(pending[0]):
            sent -= len(pending.pop(0))
        if sent:
            pending[0] = pending[0][sent:]


def to_request(item: Item) -> Request:
    """Return the request in an item."""
    fields, body = item
    headers = fields["headers"]
    return Request(
        id=str(fields["id"]),
        body=body,
        content_type=headers.get("content-type", ""),
        accept=headers.get("accept", ""),
        headers=headers,
    )


def from_response(
    request: Request, response: Response
) -> Tuple[Mapping[str, Any], Sequence[bytes]]:
    """Return the response to a request as an argument of ``encode``."""
    fields = {
        "id": request.id,
        "status": response.status,
        "content_type": response.content_type,
        "headers": dict(response.headers),
    }
    return fields, [response.body]


def to_response(item: Item) -> Response:
    """Return the response in an item; raise ``FrameError`` if it is malformed."""
    fields, body = item
    try:
        return Response(int(fields["status"]), body, str(fields["content_type"]), fields["headers"])
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"a malformed response: {error!r}") from error
