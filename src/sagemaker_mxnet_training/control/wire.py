"""The wire format of messages: frozen dataclasses as length-prefixed JSON.

A frame is a length (4 bytes, big-endian) and a JSON object with the name of the message's class as
``type``, and its fields. Fields are validated by their annotations.
"""

import dataclasses
import enum
import functools
import json
from typing import Any, Mapping, NoReturn, Optional, Sequence, Type, Union, get_type_hints

FRAME_LIMIT = 256 * 1024
"""Maximum size of a frame in bytes."""

HELLO_LIMIT = 1024
"""Maximum size of a frame in bytes before a peer has authenticated."""

_LENGTH = 4


class WireError(Exception):
    """A protocol error, which ends the connection. The message follows the peer's name."""


def encode(message: Any) -> bytes:
    """Return the frame of a message.

    Raises:
        ValueError: the message is too long, or contains NaN or infinity.
    """
    fields = {"type": type(message).__name__, **_to_json(message)}
    # Escaped ASCII preserves lone surrogates, which the output of a process may have.
    payload = json.dumps(fields, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(payload) > FRAME_LIMIT:
        raise ValueError(
            f"{fields['type']} message of {len(payload)} bytes, expected at most {FRAME_LIMIT}"
        )
    return frame(payload)


def frame(payload: bytes) -> bytes:
    """Prefix a payload with its length."""
    return len(payload).to_bytes(_LENGTH, "big") + payload


def decode(payload: bytes, *kinds: Type[Any]) -> Any:
    """Decode a frame's payload.

    Args:
        payload: the frame without its length.
        kinds: the classes of expected messages.

    Raises:
        WireError: it is not a valid message of one of these classes.
    """
    try:
        value = json.loads(payload.decode("ascii"), parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise WireError("sent invalid JSON") from None
    name = value.pop("type", None) if isinstance(value, dict) else None
    kind = next((each for each in kinds if each.__name__ == name), None)
    if kind is None:
        expected = " or ".join(each.__name__ for each in kinds)
        raise WireError(f"sent {name!r:.50}, expected {expected}")
    try:
        return _from_json(kind, value)
    except ValueError as error:
        raise WireError(f"sent a malformed {name} message: {error!s:.300}") from None


def _to_json(value: Any) -> Any:
    if _is_record(value):
        return {name: _to_json(getattr(value, name)) for name in _types(value.__class__)}
    if isinstance(value, enum.Enum):
        return value.name
    return value


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value)


@functools.lru_cache(maxsize=None)
def _types(kind: Any) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields, by name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _from_json(kind: Any, value: Any) -> Any:
    """Convert a JSON value to the annotated type; raise ``ValueError`` if that is not possible."""
    arguments: Sequence[Any] = getattr(kind, "__args__", ())
    if getattr(kind, "__origin__", None) is Union:  # Optional
        return None if value is None else _from_json(arguments[0], value)
    if arguments:  # a mapping, whose keys are strings in JSON
        fields = _checked(value, dict)
        return {name: _from_json(arguments[1], each) for name, each in fields.items()}
    if _is_record(kind):
        types, fields = _types(kind), _checked(value, dict)
        if set(fields) != set(types):
            raise ValueError(f"expected the fields {', '.join(types) or '(none)'}")
        return kind(**{name: _from_json(types[name], fields[name]) for name in types})
    if issubclass(kind, enum.Enum):
        members: Mapping[str, Any] = kind.__members__
        if _checked(value, str) not in members:
            raise ValueError(f"{value!r:.100} is not a {kind.__name__}")
        return members[value]
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    return _checked(value, kind)


def _checked(value: Any, kind: Type[Any]) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.100} is not of type {kind.__name__}")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


class Inbox:
    """Splits received bytes into payloads.

    Attributes:
        limit: maximum size of a payload in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._bytes += data

    def take(self) -> Optional[bytes]:
        """Return the next payload, or ``None`` if it is not complete yet.

        Raises:
            WireError: the payload is longer than ``limit``.
        """
        if len(self._bytes) < _LENGTH:
            return None
        end = _LENGTH + int.from_bytes(self._bytes[:_LENGTH], "big")
        if end - _LENGTH > self.limit:
            raise WireError("does not use this protocol, or sent a frame that is too long")
        if len(self._bytes) < end:
            return None
        payload = bytes(self._bytes[_LENGTH:end])
        del self._bytes[:end]
        return payload
