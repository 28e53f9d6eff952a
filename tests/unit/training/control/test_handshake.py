"""The key of a job and its proofs: alike on hosts that were given the same, and on no others."""

from dataclasses import replace
from typing import Any, Dict

import pytest

from sagemaker_mxnet_training.config.job import Settings
from sagemaker_mxnet_training.control import handshake, wire
from sagemaker_mxnet_training.control.handshake import Join, Refused, Welcome
from sagemaker_mxnet_training.control.wire import WireError
from tests.support.fakes import job

KEY = handshake.derive_key(job("algo-1"))

KEYS: Dict[str, Dict[str, Any]] = {
    "name": {"job_name": "another"},
    "arn": {"environ": {"TRAINING_JOB_ARN": "arn:other"}},
    "job_key": {"settings": Settings(job_key="secret")},
}
PARTS: Dict[str, Dict[str, Any]] = {
    "hyperparameters": {"hyperparameters": {"epochs": 3}},
    "use of the parameter server, or framework parameters": {"parameter_server": True},
    "lists of hosts": {"hosts": ("algo-1", "algo-2", "algo-3")},
}


def test_hosts_of_one_job_have_the_same_key() -> None:
    there = replace(job("algo-2", peer_timeout=3.0), hyperparameters={"epochs": 3})
    assert handshake.derive_key(there) == KEY


@pytest.mark.parametrize("what", KEYS)
def test_another_job_has_another_key(what: str) -> None:
    assert handshake.derive_key(replace(job("algo-1"), **KEYS[what])) != KEY


@pytest.mark.parametrize("part", PARTS)
def test_difference_between_hosts_is_named(part: str) -> None:
    here, there = job("algo-1"), replace(job("algo-2"), **PARTS[part])
    mine, theirs = handshake.digests(here, KEY), handshake.digests(there, KEY)
    assert handshake.differences(mine, theirs) == [part]
    assert handshake.differences(mine, handshake.digests(job("algo-2"), KEY)) == []


def test_all_differences_are_named() -> None:
    there = replace(job("algo-1"), hyperparameters={"epochs": 3}, parameter_server=True)
    found = handshake.differences(
        handshake.digests(job("algo-1"), KEY), handshake.digests(there, KEY)
    )
    assert found == list(PARTS)[:2]


def test_digests_do_not_help_to_guess_without_the_key() -> None:
    one, other = handshake.digests(job("algo-1"), KEY), handshake.digests(job("algo-1"), b"x")
    assert not set(one.values()) & set(other.values())


@pytest.mark.parametrize(
    "message", [Join({"hosts": "00"}), Welcome(), Refused("because", final=True)]
)
def test_proof_holds_for_one_message_on_one_connection(message: Any) -> None:
    signed = handshake.signed(message, KEY, b"hellos")
    assert handshake.proves(signed, KEY, b"hellos")
    assert not handshake.proves(message, KEY, b"hellos")
    assert not handshake.proves(signed, b"another key", b"hellos")
    assert not handshake.proves(signed, KEY, b"other hellos")
    assert not handshake.proves(replace(signed, proof="\ud800"), KEY, b"hellos")


def test_proof_covers_the_message() -> None:
    join = handshake.signed(Join({"hosts": "00"}), KEY, b"")
    assert not handshake.proves(replace(join, parts={"hosts": "01"}), KEY, b"")
    refused = handshake.signed(Refused("because", final=False), KEY, b"")
    assert not handshake.proves(replace(refused, final=True), KEY, b"")
    welcome = handshake.signed(Welcome(), KEY, b"")
    assert not handshake.proves(Join({}, welcome.proof), KEY, b""), "of the other side"


def test_hellos_differ_each_time() -> None:
    assert handshake.hello("algo-1") != handshake.hello("algo-1")
    said = handshake.hello("algo-2")
    assert handshake.read_hello(wire.encode(said)[4:]) == said
    assert len(wire.encode(handshake.hello("h" * 253))) <= wire.HELLO_LIMIT


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": "http"}, "does not use this protocol"),
        ({"host": ""}, "sent an invalid host name"),
        ({"host": "h" * 254}, "sent an invalid host name"),
    ],
)
def test_hello_of_something_else_is_rejected(changes: Any, reason: str) -> None:
    said = replace(handshake.hello("algo-2"), **changes)
    with pytest.raises(WireError, match=reason):
        handshake.read_hello(wire.encode(said)[4:])
