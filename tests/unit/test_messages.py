"""What hosts tell each other survives the way, and nothing else gets through."""

import json
from typing import Any, List

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
from sagemaker_mxnet_training.cluster.coordination import Step
from sagemaker_mxnet_training.cluster.decision import (
    Drain,
    End,
    FirstStep,
    Stop,
    StopScripts,
    Verdict,
)
from sagemaker_mxnet_training.cluster.network import Rendezvous

FAILURE = Failure("algo-2", Role.WORKER, "boom", FailureKind.EXCEPTION, 1, "trace")

MESSAGES: List[Any] = [
    *(messages.StepReport(step) for step in Step),
    messages.IdleReport(61.5),
    messages.DrainedReport(),
    messages.FailureReport(FAILURE, 0.25),
    messages.StopReport(15, 0.0),
    messages.StartRoles(None),
    messages.StartRoles(Rendezvous("10.0.0.1", 8000, "", 2)),
    FirstStep(),
    StopScripts(Stop("algo-3", 2)),
    Drain(),
    End(Verdict(Outcome.SUCCESS)),
    End(Verdict(Outcome.STOP)),
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
    sent = messages.StartRoles(Rendezvous("10.0.0.1", 8000, "10.0.0.1"))
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
    frames.pack(frames.Kind.MESSAGE, messages.encode(messages.FailureReport(failure, 1 / 3)))


START = {"address": "10.0.0.1", "port": 8000, "servers": 1}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "no message is of type None"),
        ({"type": "shutdown"}, "no message is of type 'shutdown'"),
        ({"type": ["end"]}, "no message is of type"),
        ({"type": "drain", "now": True}, "has the fields none"),
        ({"type": "step"}, "has the fields step"),
        ({"type": "step", "step": "DANCE"}, "not a step"),
        ({"type": "step", "step": 3}, "not a step"),
        ({"type": "idle", "seconds": "5"}, "not a number of seconds"),
        ({"type": "idle", "seconds": True}, "not a number of seconds"),
        ({"type": "idle", "seconds": float("inf")}, "not a number of seconds"),
        ({"type": "idle", "seconds": float("nan")}, "not a number of seconds"),
        ({"type": "idle", "seconds": 1e12}, "not a number of seconds"),
        ({"type": "idle", "seconds": 10**400}, "not a number of seconds"),
        ({"type": "failed", "failure": {}, "age": 0}, "a failure needs"),
        ({"type": "failed", "failure": [], "age": 0}, "a failure must be"),
        (
            {"type": "failed", "failure": {**FAILURE.to_json(), "kind": "bad luck"}, "age": 0},
            "FailureKind",
        ),
        ({"type": "failed", "failure": {**FAILURE.to_json(), "role": "cook"}, "age": 0}, "Role"),
        ({"type": "asked to stop", "signal": 0, "age": 0}, "from 1 to 64"),
        ({"type": "asked to stop", "signal": 2.0, "age": 0}, "from 1 to 64"),
        ({"type": "stop", "stop": {"host": "a"}}, "host, signal"),
        ({"type": "stop", "stop": {"host": "a" * 254, "signal": 15}}, "at most 253"),
        ({"type": "start", "rendezvous": {**START, "port": 0}}, "from 1 to 65535"),
        ({"type": "start", "rendezvous": {**START, "port": 65536}}, "from 1 to 65535"),
        ({"type": "start", "rendezvous": {**START, "address": "algo-1"}}, "rendezvous"),
        ({"type": "start", "rendezvous": {**START, "address": "::1"}}, "rendezvous"),
        ({"type": "start", "rendezvous": {**START, "servers": 65}}, "from 1 to 64"),
        ({"type": "start", "rendezvous": 5}, "address, port, servers"),
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
