"""The wire between hosts: what is packed comes out the same, and nothing else comes out at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.failure import DETAIL_LIMIT, REASON_LIMIT, Failure, FailureKind, Role
from sagemaker_mxnet_training.cluster import frames
from sagemaker_mxnet_training.cluster.frames import (
    FrameError,
    Inbox,
    Kind,
    Opening,
    derive_key,
    signers,
)

TEXT = st.text(st.characters(), max_size=50)  # lone surrogates included
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
BODIES = st.dictionaries(TEXT, JSON, max_size=4).filter(lambda body: not frames._too_deep([body]))
KEY = derive_key({"job": "one"})


def pair(key=KEY, follower=b"opening f", leader=b"opening l"):
    """Return what one end seals with and what the other opens with, from the follower."""
    return signers(key, follower, leader)[0], signers(key, follower, leader)[0]


def payload(pieces) -> bytes:
    return b"".join(pieces)[4:]


@given(st.lists(st.tuples(st.sampled_from(Kind), BODIES), max_size=5), st.data())
def test_frames_survive_any_cut_of_the_stream(sent, data):
    sealer, opener = pair()
    stream = b"".join(b"".join(sealer.seal(frames.pack(*item))) for item in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    inbox, got = Inbox(frames.FRAME_LIMIT), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)]):
        inbox.feed(stream[start:end])
        taken = inbox.take()
        while taken is not None:
            got.append(opener.open(taken))
            taken = inbox.take()
    assert got == sent
    assert not inbox._bytes


@given(st.binary(max_size=200), st.integers(0, 100))
def test_no_bytes_break_anything_but_their_connection(noise, limit):
    inbox = Inbox(limit)
    inbox.feed(noise)
    try:
        while True:
            taken = inbox.take()
            if taken is None:
                break
            assert len(taken) <= limit
            for read in (Opening.from_bytes, frames.unpack, pair()[1].open):
                with pytest.raises(FrameError):
                    read(taken)
    except FrameError:
        assert int.from_bytes(inbox._bytes[:4], "big") > limit


@given(BODIES, st.integers(0, 10**6), st.integers(1, 255))
def test_a_frame_with_one_altered_byte_is_not_opened(body, place, change):
    sealer, opener = pair()
    sealed = bytearray(payload(sealer.seal(frames.pack(Kind.MESSAGE, body))))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(FrameError, match="altered"):
        opener.open(bytes(sealed))


@given(st.permutations(range(4)))
def test_frames_open_in_their_own_order_only(order):
    sealer, opener = pair()
    sealed = [payload(sealer.seal(frames.pack(Kind.MESSAGE, {"n": n}))) for n in range(4)]
    for position, number in enumerate(order):
        if number != position:
            with pytest.raises(FrameError):
                opener.open(sealed[number])
            return
        assert opener.open(sealed[number]) == (Kind.MESSAGE, {"n": number})


def test_a_repeated_frame_is_not_opened_twice():
    sealer, opener = pair()
    sealed = payload(sealer.seal(frames.pack(Kind.BEAT)))
    assert opener.open(sealed) == (Kind.BEAT, {})
    with pytest.raises(FrameError):
        opener.open(sealed)


@pytest.mark.parametrize(
    "other",
    [
        signers(derive_key({"job": "two"}), b"opening f", b"opening l")[0],
        signers(KEY, b"opening x", b"opening l")[0],
        signers(KEY, b"opening f", b"opening x")[0],
        signers(KEY, b"opening fo", b"pening l")[0],
        signers(KEY, b"opening f", b"opening l")[1],
    ],
    ids=["key", "follower's opening", "leader's opening", "their border", "direction"],
)
def test_a_frame_of_another_conversation_is_not_opened(other):
    sealed = payload(pair()[0].seal(frames.pack(Kind.JOIN)))
    with pytest.raises(FrameError):
        other.open(sealed)


def test_openings_are_fresh_and_fit_their_limit():
    first, second = (Opening("a" * frames.HOST_LIMIT).to_bytes() for _ in range(2))
    assert first != second
    assert len(first) <= frames.OPENING_LIMIT
    assert Opening.from_bytes(first) == Opening("a" * frames.HOST_LIMIT, frames.VERSION)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET / HTTP/1.1",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"NaN",
        b'{"version": NaN}',
        b"[" * 1000,
        b'{"a":' * 160,
        json.dumps({"protocol": "other", "version": 1, "host": "a"}).encode(),
        json.dumps({"protocol": frames.PROTOCOL, "version": "1", "host": "a"}).encode(),
        json.dumps({"protocol": frames.PROTOCOL, "version": True, "host": "a"}).encode(),
        json.dumps({"protocol": frames.PROTOCOL, "version": 1, "host": ""}).encode(),
        json.dumps({"protocol": frames.PROTOCOL, "version": 1, "host": ["a"]}).encode(),
        json.dumps({"protocol": frames.PROTOCOL, "version": 1, "host": "a" * 254}).encode(),
    ],
)
def test_no_other_opening_is_read(text):
    with pytest.raises(FrameError):
        Opening.from_bytes(text)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"kind": "unheard of", "body": {}}',
        b'{"kind": ["beat"], "body": {}}',
        b'{"kind": "beat"}',
        b'{"kind": "beat", "body": []}',
        b'{"kind": "message", "body": {"a": ' + b"[" * 20 + b"]" * 20 + b"}}",
        b'{"kind": "message", "body": {"a": ' + b"[" * 20000 + b"]" * 20000 + b"}}",
    ],
)
def test_a_signed_frame_is_still_not_trusted_to_be_well_formed(text):
    with pytest.raises(FrameError):
        frames.unpack(text)


@pytest.mark.parametrize("letter", ["x", "\x00", "ü", "\U0001f600", "\ud800"])
def test_the_largest_failure_fits_a_frame(letter):
    failure = Failure(
        "algo-1",
        Role.WORKER,
        letter * REASON_LIMIT,
        FailureKind.SIGNAL,
        137,
        letter * DETAIL_LIMIT,
    )
    sealer, opener = pair()
    body = {"failure": failure.to_json()}
    _, got = opener.open(payload(sealer.seal(frames.pack(Kind.MESSAGE, body))))
    assert Failure.from_json(got["failure"]) == failure


def test_what_cannot_be_carried_is_refused_before_it_is_sent():
    deep: dict = {}
    for _ in range(frames.DEPTH_LIMIT):
        deep = {"a": deep}
    for body in (deep, {"a": "x" * frames.FRAME_LIMIT}, {"a": float("inf")}):
        with pytest.raises(ValueError):
            frames.pack(Kind.MESSAGE, body)
    with pytest.raises(TypeError):
        frames.pack(Kind.MESSAGE, {"a": object()})


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_a_key_depends_on_the_material_and_not_on_its_order(material):
    key = derive_key(material)
    assert key == derive_key(dict(reversed(list(material.items()))))
    assert key != derive_key({**material, "one more": 1})
    assert len(key) == 32
