"""What the hosts of a job tell each other, and the one table that says how it travels.

Followers send reports, the leader sends orders. Frames are signed (see ``frames``), so a message
comes from a host of the job; that it is well formed is checked here all the same.
"""

import enum
import os
import socket
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple, Type

from sagemaker_mxnet_toolkit.failure import Failure
from sagemaker_mxnet_training.cluster.events import (
    Command,
    Do,
    End,
    Rendezvous,
    Restart,
    Start,
    Step,
    Stop,
    StopScripts,
    Verdict,
)
from sagemaker_mxnet_training.cluster.frames import HOST_LIMIT

TEXT_LIMIT = 4096
"""Characters of a note."""

AGE_LIMIT = 366 * 24 * 3600.0
"""Seconds: the longest time that a message may speak of."""

ATTEMPT_LIMIT = 10**6
"""The largest number of an attempt."""

NAME_LIMIT = 255
"""Characters of a file name."""

SERVERS_LIMIT = 64
"""Servers on each host, as ``configuration`` allows them."""

# Reports, from a follower to the leader. An age is how many seconds ago something happened: clocks
# of two machines do not compare.


class StepReport(NamedTuple):
    """A host does, or has done, this in its present attempt."""

    step: Step
    attempt: int


class IdleReport(NamedTuple):
    """A host's worker has made no progress for so many seconds."""

    seconds: float


class FailureReport(NamedTuple):
    """Something failed on a host in its present attempt, some seconds ago."""

    failure: Failure
    attempt: int
    age: float


class StopReport(NamedTuple):
    """A host was asked to stop, by a signal, some seconds ago."""

    signal: int
    age: float


# Orders, from the leader to its followers, are those of ``events``; and one more. Of a
# rendezvous, the address of the host that gets the order does not travel: it is empty after
# ``decode``.


class Note(NamedTuple):
    """A line for the log."""

    text: str


Message = Any
"""An instance of one of the classes in the table below."""


class _Field(NamedTuple):
    """How one field travels: into JSON, and back with a check that raises ``ValueError``."""

    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.100} is not a whole number from {low} to {high}")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not -AGE_LIMIT <= value <= AGE_LIMIT:
        raise ValueError(f"{value!r:.100} is not a number of seconds")
    return max(0.0, float(value))


def _text(value: Any, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise ValueError(f"{value!r:.100} is not a text of at most {limit} characters")
    return value


def _member(kind: Type[enum.Enum], what: str) -> "_Field":
    def from_json(value: Any) -> Any:
        if not isinstance(value, str) or value not in kind.__members__:
            raise ValueError(f"{value!r:.100} is not {what}")
        return kind[value]

    return _Field(lambda member: member.name, from_json)


def _attempt(value: Any) -> int:
    return _whole(value, 1, ATTEMPT_LIMIT)


def _resume(value: Any) -> str:
    if os.path.basename(_text(value, NAME_LIMIT)) != value:
        raise ValueError(f"{value!r:.100} is not a file name")
    return str(value)


def _mapping(value: Any, names: Tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ValueError(f"expected an object with {', '.join(names)}")
    return value


def _signal(value: Any) -> int:
    return _whole(value, 1, 64)


def _stop(value: Any) -> Stop:
    fields = _mapping(value, ("host", "signal"))
    return Stop(_text(fields["host"], HOST_LIMIT), _signal(fields["signal"]))


def _ipv4(value: Any) -> str:
    try:
        return socket.inet_ntoa(socket.inet_pton(socket.AF_INET, _text(value, 15)))
    except OSError:
        raise ValueError(f"{value!r} is not an IPv4 address") from None


def _rendezvous(value: Any) -> Optional[Rendezvous]:
    if value is None:
        return None
    fields = _mapping(value, ("address", "port", "servers"))
    return Rendezvous(
        _ipv4(fields["address"]),
        _whole(fields["port"], 1, 65535),
        "",
        _whole(fields["servers"], 1, SERVERS_LIMIT),
    )


def _rendezvous_json(value: Optional[Rendezvous]) -> Optional[Mapping[str, Any]]:
    if value is None:
        return None
    return {"address": value.address, "port": value.port, "servers": value.servers_per_host}


def _as_is(value: Any) -> Any:
    return value


_SECONDS = _Field(_as_is, _seconds)
_ATTEMPT = _Field(_as_is, _attempt)
_FAILURE = _Field(Failure.to_json, Failure.from_json)

TABLE: Mapping[str, Tuple[Type[Any], Mapping[str, _Field]]] = {
    "step": (StepReport, {"step": _member(Step, "a step of a job"), "attempt": _ATTEMPT}),
    "idle": (IdleReport, {"seconds": _SECONDS}),
    "failed": (FailureReport, {"failure": _FAILURE, "attempt": _ATTEMPT, "age": _SECONDS}),
    "asked to stop": (StopReport, {"signal": _Field(_as_is, _signal), "age": _SECONDS}),
    "start": (
        Start,
        {
            "attempt": _ATTEMPT,
            "resume": _Field(_as_is, _resume),
            "rendezvous": _Field(_rendezvous_json, _rendezvous),
        },
    ),
    "restart": (Restart, {"attempt": _ATTEMPT, "failure": _FAILURE}),
    "stop": (
        StopScripts,
        {"stop": _Field(lambda stop: {"host": stop.host, "signal": stop.signal}, _stop)},
    ),
    "do": (Do, {"command": _member(Command, "a command")}),
    "end": (End, {"verdict": _Field(Verdict.to_json, Verdict.from_json)}),
    "note": (Note, {"text": _Field(_as_is, lambda value: _text(value, TEXT_LIMIT))}),
}
"""The name of each message on the wire, its class, and how each of its fields travels."""

_NAMES: Dict[Type[Any], str] = {kind: name for name, (kind, _) in TABLE.items()}


def encode(message: Message) -> Mapping[str, Any]:
    """Return the JSON object that ``decode`` reads."""
    name = _NAMES[type(message)]
    fields = TABLE[name][1]
    return {
        "type": name,
        **{field: how.to_json(getattr(message, field)) for field, how in fields.items()},
    }


def decode(body: Mapping[str, Any]) -> Message:
    """Read what ``encode`` returned on another host.

    Raises:
        ValueError: when it is anything else; the text says what is wrong, and is bounded.
    """
    name = body.get("type")
    if not isinstance(name, str) or name not in TABLE:
        raise ValueError(f"no message is of type {name!r:.100}")
    kind, fields = TABLE[name]
    if set(body) != {"type", *fields}:
        raise ValueError(f"a message of type {name!r} has the fields {', '.join(fields) or 'none'}")
    values = {}
    for field, how in fields.items():
        try:
            values[field] = how.from_json(body[field])
        except ValueError as error:
            raise ValueError(f"{field} of a message of type {name!r}: {error!s:.300}") from None
    return kind(**values)
