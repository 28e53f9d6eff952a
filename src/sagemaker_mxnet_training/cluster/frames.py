"""The wire between hosts: frames and the keys that sign them. Nothing here touches a socket.

A frame is a length (4 bytes, big-endian) and a payload of that many bytes. Two kinds of payload:

- *opening*: a JSON object with protocol, version, host name and a fresh nonce. Each side sends one,
  the follower first. It proves nothing.
- *signed*: a JSON object ``{"kind": ..., "body": {...}}`` and a tag of 32 bytes, the HMAC-SHA256
  of the frame's number and the SHA-256 of the JSON. Each direction of each connection has a key of
  its own, derived from the job's key and both openings as they went over the wire.

So the first valid signed frame proves that its sender knows the job's key, and that nobody altered
either opening; every later one, that it comes from the same sender, whole, once and in order.
Frames are authentic, not secret: nothing confidential may travel in them.

The opening stays as it is in all versions of the protocol, so that a host of another version can be
told so.
"""

import enum
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from typing import Any, Dict, Mapping, NamedTuple, NoReturn, Optional, Tuple

PROTOCOL = "sagemaker-mxnet-control"
VERSION = 1

FRAME_LIMIT = 64 * 1024
"""Bytes of the longest payload."""

OPENING_LIMIT = 1024
"""Bytes of the longest payload that is read from a peer that has proved nothing."""

DEPTH_LIMIT = 16
"""Objects and lists inside each other in a payload."""

HOST_LIMIT = 253
"""Characters of a host name: the longest that DNS has (RFC 1035, section 2.3.4)."""

_LENGTH = 4
_TAG = hashlib.sha256().digest_size


class FrameError(Exception):
    """A frame that ends its connection. The text reads well after the peer's name and a colon."""


class Kind(enum.Enum):
    """What a signed frame is for."""

    JOIN = "join"
    """Follower: I hold the key."""
    WELCOME = "welcome"
    """Leader: so do I, and you are one of us."""
    REFUSED = "refused"
    """Leader: so do I, but you are not one of us, because."""
    BEAT = "beat"
    """I am alive. The follower's first one says that it got the welcome."""
    MESSAGE = "message"
    """What the channel is there for."""
    DROPPED = "dropped"
    """I count you as lost, because."""
    GOODBYE = "goodbye"
    """I have nothing more to say and expect nothing more."""


class Packed(NamedTuple):
    """A frame's JSON, serialised and hashed once, to be signed for any number of peers."""

    text: bytes
    digest: bytes


def derive_key(material: Mapping[str, Any]) -> bytes:
    """Return the 32-byte key of the job that ``material`` (a JSON object) identifies.

    The order of the object's names does not matter; anything else does. The key is as hard to
    guess as the material.
    """
    canonical = json.dumps(material, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{PROTOCOL} key\n{canonical}".encode("ascii")).digest()


def pack(kind: Kind, body: Optional[Mapping[str, Any]] = None) -> Packed:
    """Serialise a signed frame's JSON.

    Raises:
        TypeError: when ``body`` holds what JSON has no form for.
        ValueError: when it holds NaN or infinity, or is too long or too deep to be carried.
    """
    content = {"kind": kind.value, "body": dict(body or {})}
    if _too_deep(content):
        raise ValueError(f"a frame holds {DEPTH_LIMIT} levels of JSON, this {kind.value} more")
    # Text from a process may hold lone surrogates (undecodable bytes), and must arrive the same.
    plain = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = plain.encode("utf-8", "surrogatepass")
    if len(text) > FRAME_LIMIT - _TAG:
        raise ValueError(f"a frame holds {FRAME_LIMIT - _TAG} bytes, this {kind.value} {len(text)}")
    return Packed(text, hashlib.sha256(text).digest())


def unpack(text: bytes) -> Tuple[Kind, Dict[str, Any]]:
    """Read what ``pack`` wrote.

    Raises:
        FrameError: when it is anything else.
    """
    content = _parse(text)
    body = content.get("body")
    try:
        kind = Kind(content.get("kind"))
    except ValueError:
        raise FrameError("sent a frame of an unknown kind") from None
    if not isinstance(body, dict):
        raise FrameError("sent a frame without a body")
    return kind, body


@dataclass(frozen=True)
class Opening:
    """Who a peer says it is, before any proof."""

    host: str
    version: int = VERSION

    def to_bytes(self) -> bytes:
        """Return the frame's payload, with a fresh nonce."""
        fields = {"protocol": PROTOCOL, "version": self.version, "host": self.host}
        return json.dumps({**fields, "nonce": os.urandom(32).hex()}).encode("ascii")

    @classmethod
    def from_bytes(cls, payload: bytes) -> "Opening":
        """Read a payload. The nonce counts as a part of the payload, see ``signers``.

        Raises:
            FrameError: when it is no opening of this protocol, of whatever version.
        """
        fields = _parse(payload)
        host, version = fields.get("host"), fields.get("version")
        if fields.get("protocol") != PROTOCOL or type(version) is not int:
            raise FrameError("does not speak this protocol")
        if not isinstance(host, str) or not 0 < len(host) <= HOST_LIMIT:
            raise FrameError("does not say who it is")
        return cls(host, version)


class Signer:
    """One direction of one connection: numbers its frames, and signs or checks them."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def _tag(self, digest: bytes) -> bytes:
        number = self._number.to_bytes(8, "big")
        self._number += 1
        return hmac.digest(self._key, number + digest, "sha256")

    def seal(self, packed: Packed) -> Tuple[bytes, bytes, bytes]:
        """Return the next frame as it goes over the wire, in pieces: the text is not copied."""
        length = len(packed.text) + _TAG
        return length.to_bytes(_LENGTH, "big"), packed.text, self._tag(packed.digest)

    def open(self, payload: bytes) -> Tuple[Kind, Dict[str, Any]]:
        """Check and read the next frame's payload.

        Raises:
            FrameError: when it is not exactly what the peer sealed next, or malformed.
        """
        text, tag = payload[:-_TAG], payload[-_TAG:]
        if not hmac.compare_digest(self._tag(hashlib.sha256(text).digest()), tag):
            raise FrameError("sent a frame that is altered, repeated or out of order")
        return unpack(text)


def signers(key: bytes, follower: bytes, leader: bytes) -> Tuple[Signer, Signer]:
    """Return the two directions of a connection: from the follower, and from the leader.

    Args:
        key: the job's key.
        follower: the payload of the follower's opening, exactly as it was sent.
        leader: the payload of the leader's.
    """
    transcript = b"".join((*frame(follower), *frame(leader)))
    from_follower = hmac.digest(key, b"from follower\n" + transcript, "sha256")
    from_leader = hmac.digest(key, b"from leader\n" + transcript, "sha256")
    return Signer(from_follower), Signer(from_leader)


def frame(payload: bytes) -> Tuple[bytes, bytes]:
    """Return a payload as it goes over the wire, in pieces."""
    return len(payload).to_bytes(_LENGTH, "big"), payload


class Inbox:
    """Bytes as they come in, cut into payloads. Holds less than one payload more than it is fed.

    Attributes:
        limit: bytes of the longest payload to accept.
    """

    __slots__ = ("_bytes", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._bytes += data

    def take(self) -> Optional[bytes]:
        """Return the next payload, or ``None`` while it is not there in full.

        Raises:
            FrameError: when the payload is announced as longer than ``limit``.
        """
        if len(self._bytes) < _LENGTH:
            return None
        end = _LENGTH + int.from_bytes(self._bytes[:_LENGTH], "big")
        if end - _LENGTH > self.limit:
            raise FrameError("does not speak this protocol, or too long a frame of it")
        if len(self._bytes) < end:
            return None
        payload = bytes(self._bytes[_LENGTH:end])
        del self._bytes[:end]
        return payload


def _parse(text: bytes) -> Dict[str, Any]:
    """Return the JSON object in ``text``, trusting nothing about it."""
    try:
        value = json.loads(text.decode("utf-8", "surrogatepass"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise FrameError("sent a frame that is no JSON") from None
    if not isinstance(value, dict):
        raise FrameError("sent a frame that is no JSON object")
    if _too_deep(value):
        raise FrameError(f"sent a frame with more than {DEPTH_LIMIT} levels of JSON")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _too_deep(value: object) -> bool:
    """Tell whether ``value`` nests deeper than the limit, level by level: no recursion."""
    level = [value]
    for _ in range(DEPTH_LIMIT):
        nested = [item for item in level if isinstance(item, (dict, list, tuple))]
        level = [
            child
            for item in nested
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, (dict, list, tuple)) for item in level)
