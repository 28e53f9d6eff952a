"""What hosts tell each other survives the way, and nothing else gets through."""

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
from sagemaker_mxnet_training.cluster import frames, messages
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

FAILURE = Failure("algo-2", Role.WORKER, "boom", FailureKind.EXCEPTION, 1, "trace")

MESSAGES: List[Any] = [
    *(messages.StepReport(step, 2) for step in Step),
    messages.IdleReport(61.5),
    messages.FailureReport(FAILURE, 1, 0.25),
    messages.StopReport(15, 0.0),
    Start(1),
    Start(2, "checkpoint-000001-step-1.zip", Rendezvous("10.0.0.1", 8000, "", 2)),
    Restart(2, FAILURE),
    *(Do(command) for command in Command),
    StopScripts(Stop("algo-3", 2)),
    End(Verdict(Outcome.SUCCESS)),
    End(Verdict(Outcome.STOP, None, 2, "algo-1: server failed")),
    End(Verdict(Outcome.FAILURE, FAILURE)),
    messages.Note("waiting for algo-2"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_way(message: Any) -> None:
    body = json.loads(json.dumps(messages.encode(message)))
    assert messages.decode(body) == message


def test_every_message_of_the_table_is_tested() -> None:
    assert {type(message) for message in MESSAGES} == {kind for kind, _ in messages.TABLE.values()}


def test_the_address_of_the_receiver_does_not_travel() -> None:
    sent = Start(1, "", Rendezvous("10.0.0.1", 8000, "10.0.0.1"))
    assert messages.decode(messages.encode(sent)).rendezvous.own_address == ""


def test_the_largest_failure_fits_into_a_frame() -> None:
    failure = Failure(
        "h" * frames.HOST_LIMIT,
        Role.WORKER,
        "\x01" * REASON_LIMIT,
        FailureKind.EXCEPTION,
        1,
        "\x01" * DETAIL_LIMIT,
    )
    frames.pack(frames.Kind.MESSAGE, messages.encode(End(Verdict(Outcome.FAILURE, failure))))
    frames.pack(frames.Kind.MESSAGE, messages.encode(messages.FailureReport(failure, 1, 1 / 3)))


FAILED: Mapping[str, Any] = {"type": "failed", "attempt": 1, "age": 0}
PLACE = {"address": "10.0.0.1", "port": 8000, "servers": 1}
START: Mapping[str, Any] = {"attempt": 1, "resume": "", "rendezvous": PLACE}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "no message is of type None"),
        ({"type": "shutdown"}, "no message is of type 'shutdown'"),
        ({"type": ["end"]}, "no message is of type"),
        ({"type": "do", "command": "DRAIN", "now": True}, "has the fields command"),
        ({"type": "step"}, "has the fields step, attempt"),
        ({"type": "step", "step": "DANCE", "attempt": 1}, "not a step"),
        ({"type": "step", "step": 3, "attempt": 1}, "not a step"),
        ({"type": "step", "step": "READY", "attempt": 0}, "from 1 to"),
        ({"type": "start", **START, "resume": "../x"}, "not a file name"),
        ({"type": "do", "command": "DANCE"}, "not a command"),
        ({"type": "idle", "seconds": "5"}, "not a number of seconds"),
        ({"type": "idle", "seconds": True}, "not a number of seconds"),
        ({"type": "idle", "seconds": float("inf")}, "not a number of seconds"),
        ({"type": "idle", "seconds": float("nan")}, "not a number of seconds"),
        ({"type": "idle", "seconds": 1e12}, "not a number of seconds"),
        ({"type": "idle", "seconds": 10**400}, "not a number of seconds"),
        ({"type": "failed", "failure": {}, "attempt": 1, "age": 0}, "a failure needs"),
        ({"type": "failed", "failure": [], "attempt": 1, "age": 0}, "a failure must be"),
        (
            {
                "type": "failed",
                "failure": {**FAILURE.to_json(), "kind": "bad luck"},
                "attempt": 1,
                "age": 0,
            },
            "FailureKind",
        ),
        (
            {
                "type": "failed",
                "failure": {**FAILURE.to_json(), "role": "cook"},
                "attempt": 1,
                "age": 0,
            },
            "Role",
        ),
        ({"type": "asked to stop", "signal": 0, "age": 0}, "from 1 to 64"),
        ({"type": "asked to stop", "signal": 2.0, "age": 0}, "from 1 to 64"),
        ({"type": "stop", "stop": {"host": "a"}}, "host, signal"),
        ({"type": "stop", "stop": {"host": "a" * 254, "signal": 15}}, "at most 253"),
        ({"type": "start", **START, "rendezvous": {**PLACE, "port": 0}}, "from 1 to 65535"),
        ({"type": "start", **START, "rendezvous": {**PLACE, "port": 65536}}, "from 1 to 65535"),
        ({"type": "start", **START, "rendezvous": {**PLACE, "address": "algo-1"}}, "rendezvous"),
        ({"type": "start", **START, "rendezvous": {**PLACE, "address": "::1"}}, "rendezvous"),
        ({"type": "start", **START, "rendezvous": {**PLACE, "servers": 65}}, "from 1 to 64"),
        ({"type": "start", **START, "rendezvous": 5}, "address, port, servers"),
        ({"type": "end", "verdict": {"outcome": "victory"}}, "Outcome"),
        ({"type": "end", "verdict": {"outcome": "failure"}}, "a failure must be"),
        ({"type": "note", "text": "x" * 5000}, "at most 4096"),
    ],
)
def test_a_wrong_message_is_refused_with_a_reason(body: Any, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        messages.decode(body)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_whatever_a_field_holds_is_read_or_refused(message: Any, data: st.DataObject) -> None:
    body = dict(messages.encode(message))
    for field in body:
        if data.draw(st.booleans()):
            body[field] = data.draw(json_values)
    try:
        messages.encode(messages.decode(body))
    except ValueError as error:
        assert len(str(error)) < 1000
