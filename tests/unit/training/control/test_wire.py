"""Messages on the wire: encoding round-trips, and anything else is rejected."""

import json
from typing import Any, List, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.failure import (
    DETAIL_LIMIT,
    REASON_LIMIT,
    Failure,
    FailureKind,
    Outcome,
    Role,
)
from sagemaker_mxnet_training.cluster.events import (
    CAUSE_LIMIT,
    ORDERS,
    REPORTS,
    DrainRoles,
    End,
    EndScripts,
    Failed,
    FirstStep,
    HostState,
    Idle,
    Note,
    RankFinished,
    Rendezvous,
    Reported,
    Restart,
    Start,
    Stop,
    StopRequested,
    StopScripts,
    Verdict,
)
from sagemaker_mxnet_training.control import wire
from sagemaker_mxnet_training.control.handshake import Hello, Join, Refused, Welcome
from sagemaker_mxnet_training.control.link import Beat, Dropped, Goodbye
from sagemaker_mxnet_training.control.wire import Inbox, WireError

FAILURE = Failure("algo-2", Role.WORKER, "b\ud800m", FailureKind.EXCEPTION, 1, "detail\n\x00")
MESSAGES: List[Any] = [
    Hello("p", 1, "algo-2", "00"),
    Join({"hosts": "00", "hyperparameters": "01"}, "02"),
    Welcome("00"),
    Refused("because", True, "00"),
    Beat(),
    Dropped("silent"),
    Goodbye(),
    Reported(HostState.READY, "algo-2", 2),
    RankFinished("algo-2", 3, 2),
    Idle("algo-2", 5.5),
    Failed(FAILURE, -0.25, 3),
    StopRequested(Stop("algo-2", 15), -1.0),
    Start(1),
    Start(2, "checkpoint-000001-step-7.zip", Rendezvous("10.0.0.1", 8000, "10.0.0.1", 2)),
    Start(1, "", Rendezvous("10.0.0.1", 8000, "", listener=5, peers={"algo-2": "10.0.0.2"})),
    FirstStep(),
    Restart(2, FAILURE),
    StopScripts(Stop("algo-1", 2)),
    EndScripts(),
    DrainRoles(),
    End(Verdict(Outcome.SUCCESS, saved=True)),
    End(Verdict(Outcome.FAILURE, FAILURE, 1, "the first cause")),
    Note("waiting for algo-3"),
]
KINDS = (Hello, Join, Welcome, Refused, Beat, Dropped, Goodbye, *REPORTS, *ORDERS)


def decoded(message: Any) -> Any:
    return wire.decode(wire.encode(message)[4:], *KINDS)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_round_trips(message: Any) -> None:
    assert decoded(message) == message


def test_every_kind_of_message_is_tested() -> None:
    assert {type(message) for message in MESSAGES} == set(KINDS)


def test_whole_number_is_a_float_where_one_is_annotated() -> None:
    assert type(decoded(Idle("algo-2", 5)).seconds) is float


@given(st.lists(st.sampled_from(MESSAGES), max_size=5), st.data())
def test_frames_survive_any_cut_of_the_stream(sent: List[Any], data: st.DataObject) -> None:
    stream = b"".join(map(wire.encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    inbox, got = Inbox(wire.FRAME_LIMIT), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)]):
        inbox.feed(stream[start:end])
        taken = inbox.take()
        while taken is not None:
            got.append(wire.decode(taken, *KINDS))
            taken = inbox.take()
    assert got == sent


def test_too_long_a_frame_is_rejected_by_its_length() -> None:
    inbox = Inbox(wire.HELLO_LIMIT)
    inbox.feed((wire.HELLO_LIMIT + 1).to_bytes(4, "big"))
    with pytest.raises(WireError, match="frame that is too long"):
        inbox.take()


def test_largest_failures_fit_into_a_frame() -> None:
    longest = Failure(
        "h" * 253,
        Role.WORKER,
        "\U0001f600" * (REASON_LIMIT + 9),
        FailureKind.EXCEPTION,
        1,
        "\U0001f600" * (DETAIL_LIMIT + 9),
    ).bounded()
    for message in (
        Failed(longest, -1 / 3),
        End(Verdict(Outcome.FAILURE, longest, 3, "\U0001f600" * CAUSE_LIMIT)),
    ):
        assert decoded(message) == message


def test_message_that_cannot_be_carried_is_an_error() -> None:
    with pytest.raises(ValueError, match="Note message of"):
        wire.encode(Note("x" * wire.FRAME_LIMIT))
    with pytest.raises(ValueError):
        wire.encode(Idle("algo-2", float("nan")))


STOP: Mapping[str, Any] = {"host": "algo-2", "signal": 15}
START: Mapping[str, Any] = {"type": "Start", "attempt": 1, "resume": "", "rendezvous": None}
PLACE = {
    "address": "10.0.0.1",
    "port": 8000,
    "own_address": "",
    "servers_per_host": 1,
    "listener": 0,
    "peers": {},
}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "sent None, expected"),
        ([], "sent None, expected"),
        ({"type": "Shutdown"}, "sent 'Shutdown', expected"),
        ({"type": ["End"]}, "sent ['End'], expected"),
        ({"type": "DrainRoles", "now": True}, "expected the fields (none)"),
        ({"type": "Reported"}, "expected the fields state, host, attempt"),
        ({"type": "Reported", "state": "DANCE", "host": "a", "attempt": 1}, "not a HostState"),
        ({"type": "Reported", "state": 3, "host": "a", "attempt": 1}, "3 is not of type str"),
        ({"type": "Reported", "state": "READY", "host": "a", "attempt": True}, "not of type int"),
        ({"type": "Reported", "state": "READY", "host": None, "attempt": 1}, "not of type str"),
        ({"type": "Idle", "host": "a", "seconds": "5"}, "not of type float"),
        ({"type": "Idle", "host": "a", "seconds": True}, "not of type float"),
        ({"type": "Idle", "host": "a", "seconds": 10**400}, "not of type float"),
        ({"type": "StopScripts", "stop": {"host": "a"}}, "expected the fields host, signal"),
        ({"type": "StopScripts", "stop": {**STOP, "signal": 2.5}}, "2.5 is not of type int"),
        ({**START, "rendezvous": 5}, "5 is not of type dict"),
        ({**START, "rendezvous": {**PLACE, "port": "8000"}}, "'8000' is not of type int"),
        ({"type": "Join", "proof": "", "parts": {"hosts": 1}}, "1 is not of type str"),
        ({"type": "End", "verdict": {"outcome": "SUCCESS"}}, "expected the fields outcome"),
    ],
)
def test_malformed_message_is_rejected_with_a_reason(body: Any, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode(json.dumps(body).encode(), *KINDS)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff\xfe",
        bytes(range(128, 256)),
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"type":"Idle","host":"a","seconds":NaN}',
        b'{"type":"Idle","host":"a","seconds":Infinity}',
        b"1" * 5000,
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_payload_that_is_not_a_message_is_rejected(payload: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(payload, *KINDS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_whatever_a_field_holds_is_read_or_rejected(message: Any, data: st.DataObject) -> None:
    body = json.loads(wire.encode(message)[4:])
    for field in body:
        if data.draw(st.booleans()):
            body[field] = data.draw(json_values)
    try:
        wire.encode(wire.decode(json.dumps(body).encode(), *KINDS))
    except WireError as error:
        assert len(str(error)) < 1000
