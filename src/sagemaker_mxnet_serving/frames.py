"""Frames between the HTTP front and the workers: a JSON header and the bodies it lists.

A frame carries the requests of one prediction, or the answers to them in the same order. It is
``HEAD`` (length of the header, length of all bodies), the header, and the bodies one after
another. The header is a list of objects, each with the key ``size``: the bytes of its body.
"""

import socket
import struct
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import orjson

from sagemaker_mxnet_serving.messages import Piece, Request, Response

HEAD = struct.Struct(">IQ")
HEADER_LIMIT = 512 * 1024 * 1024
"""Bytes of a header. The heads of requests that go together have 64 MiB at most, and JSON makes
them up to four times as long: it escapes characters, and has the content types once more."""

BODY_LIMIT = 2**31
"""Bytes of all bodies of a frame."""

_SMALL = 64 * 1024
"""Bytes of a frame that is received at once."""

Item = Tuple[Mapping[str, Any], bytes]


class FrameError(Exception):
    """The other side sent something that is no frame."""


def encode(items: Sequence[Tuple[Mapping[str, Any], Sequence[Piece]]]) -> List[Piece]:
    """Return the pieces of a frame; bodies stay as they are, in one piece or in several."""
    fields = [{**item, "size": sum(map(len, body))} for item, body in items]
    header = orjson.dumps(fields)
    total = sum(item["size"] for item in fields)
    if len(header) > HEADER_LIMIT or total > BODY_LIMIT:
        raise FrameError(f"a frame of {len(header)} and {total} bytes is too large")
    return [HEAD.pack(len(header), total) + header, *(part for _, body in items for part in body)]


def lengths(head: bytes) -> Tuple[int, int]:
    """Return the lengths that a head tells: of the header, and of all bodies."""
    header, body = HEAD.unpack(head)
    if header > HEADER_LIMIT or body > BODY_LIMIT:
        raise FrameError(f"a frame of {header} and {body} bytes is too large")
    return header, body


def decode(header: bytes, body: bytes) -> List[Item]:
    """Return what a frame carries."""
    try:
        fields = orjson.loads(header)
        sizes = [item["size"] for item in fields]
    except (ValueError, TypeError, KeyError) as error:
        raise FrameError("a header that is no list of objects") from error
    if any(type(size) is not int or size < 0 for size in sizes) or sum(sizes) != len(body):
        raise FrameError("bodies of other lengths than the header says")
    if len(fields) == 1:
        return [(fields[0], body)]
    items, start = [], 0
    for item, size in zip(fields, sizes):
        items.append((item, body[start : start + size]))
        start += size
    return items


class FrameReader:
    """Puts frames together from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._pieces: List[bytes] = []
        self._held = 0
        self._lengths: Optional[Tuple[int, int]] = None

    def feed(self, data: bytes) -> Iterator[List[Item]]:
        """Yield what is complete now."""
        if not self._held and self._lengths is None and len(data) >= HEAD.size:
            header, body = lengths(data[: HEAD.size])
            start = HEAD.size + header
            if len(data) == start + body:  # one frame and no more, as mostly
                yield decode(data[HEAD.size : start], data[start:])
                return
        self._pieces.append(data)
        self._held += len(data)
        while True:
            if self._lengths is None:
                if self._held < HEAD.size:
                    return
                self._lengths = lengths(self._take(HEAD.size))
            header, body = self._lengths
            if self._held < header + body:
                return
            self._lengths = None
            yield decode(self._take(header), self._take(body))

    def _take(self, size: int) -> bytes:
        if not size:
            return b""
        data = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        self._pieces = []  # before the next copy is made: a body may be large
        if len(data) > size:
            self._pieces.append(data[size:])
        self._held -= size
        return data[:size]


def receive(connection: socket.socket) -> Optional[List[Item]]:
    """Wait for the next frame; ``None`` when the other side has gone.

    The other side sends no second frame before the first is answered.
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
    # A body may be large: it is put together by itself, and not cut out of a whole frame.
    first = data[start:]
    rest = _read(connection, body - len(first))
    if rest is None:
        return None
    return decode(data[HEAD.size : start], first + rest)


def _read(connection: socket.socket, size: int) -> Optional[bytes]:
    """Wait for so many bytes, if any; ``None`` when the other side has gone."""
    pieces = []
    while size > 0:
        piece = connection.recv(size, socket.MSG_WAITALL)
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def send(connection: socket.socket, pieces: Iterable[Piece]) -> None:
    """Send a frame."""
    pending = [memoryview(piece) for piece in pieces if piece]
    while pending:
        # At most IOV_MAX pieces go into one call.
        sent = connection.sendmsg(pending[:512])
        while pending and sent >= len(pending[0]):
            sent -= len(pending.pop(0))
        if sent:
            pending[0] = pending[0][sent:]


def from_request(request: Request) -> Dict[str, Any]:
    """Return a request without its body, as a header has it."""
    return {
        "id": request.id,
        "content_type": request.content_type,
        "accept": request.accept,
        "headers": dict(request.headers),
    }


def to_request(item: Item) -> Request:
    """Return the request that a worker gets."""
    fields, body = item
    return Request(
        id=str(fields["id"]),
        body=body,
        content_type=str(fields["content_type"]),
        accept=str(fields["accept"]),
        headers=fields["headers"],
    )


def from_response(response: Response) -> Tuple[Mapping[str, Any], Sequence[bytes]]:
    """Return an answer as ``encode`` takes it."""
    fields = {
        "status": response.status,
        "content_type": response.content_type,
        "headers": dict(response.headers),
    }
    return fields, [response.body]


def to_response(item: Item) -> Response:
    """Return the answer that a worker gave; ``FrameError`` if it is none."""
    fields, body = item
    try:
        return Response(int(fields["status"]), body, str(fields["content_type"]), fields["headers"])
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(f"an answer that is none: {error!r}") from error
