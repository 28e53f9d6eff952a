"""Frames: whatever is sent arrives, in whichever pieces; anything else is refused."""

import contextlib
import socket
import threading
import tracemalloc
from typing import Callable, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_serving import frames
from sagemaker_mxnet_serving.messages import Request, Response

FRAMES = st.lists(
    st.lists(st.tuples(st.dictionaries(st.text(), st.text()), st.binary()), max_size=4), max_size=4
)


def strip(items: List[frames.Item]) -> List[frames.Item]:
    return [({k: v for k, v in fields.items() if k != "size"}, body) for fields, body in items]


@given(FRAMES, st.integers(1, 50))
def test_frames_arrive_whole_however_they_are_cut(sent: List[List[frames.Item]], step: int) -> None:
    sent = [strip(items) for items in sent]
    stream = b"".join(
        b"".join(frames.encode([(fields, [body]) for fields, body in items])) for items in sent
    )
    reader = frames.FrameReader()
    found = [
        strip(items)
        for start in range(0, len(stream), step)
        for items in reader.feed(stream[start : start + step])
    ]
    assert found == sent


@given(st.binary(max_size=200))
def test_anything_else_is_refused_or_waited_for(data: bytes) -> None:
    with contextlib.suppress(frames.FrameError):
        list(frames.FrameReader().feed(data))


@pytest.mark.parametrize(
    "size", [b'[{"size":-1}]', b'[{"size":true}]', b'[{"size":9}]', b"{}", b"7"]
)
def test_lengths_that_do_not_agree(size: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode(size, b"abc")


def test_a_head_that_promises_too_much_is_refused_at_once() -> None:
    with pytest.raises(frames.FrameError):
        list(frames.FrameReader().feed(frames.HEAD.pack(10, frames.BODY_LIMIT + 1)))


def test_a_large_request_through_a_socket() -> None:
    body = bytes(range(256)) * 20000
    request = Request("id-1", body, "application/x-npy", "*/*", {"a": "b"})
    front, worker = socket.socketpair()
    pieces = [body[:1000], body[1000:]]
    parts = frames.encode([(frames.from_request(request), pieces)])
    sender = threading.Thread(target=frames.send, args=(front, parts))
    sender.start()
    items = frames.receive(worker)
    sender.join()
    assert items is not None
    assert [frames.to_request(each) for each in items] == [request]
    front.close()
    assert frames.receive(worker) is None
    worker.close()


LARGE = b"x" * 8_000_000


def peak(read: Callable[[], object]) -> int:
    """Return how many bytes are held at most while something is read."""
    tracemalloc.start()
    try:
        assert read() is not None
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_body_is_held_twice_at_most() -> None:
    front, worker = socket.socketpair()
    parts = frames.encode([({}, [LARGE])])
    with front, worker:
        sender = threading.Thread(target=frames.send, args=(front, parts))
        sender.start()
        assert peak(lambda: frames.receive(worker)) < 2.5 * len(LARGE)
        sender.join()


def test_a_large_answer_is_held_twice_at_most() -> None:
    stream, step = b"".join(frames.encode([({}, [LARGE])])), 65536
    blocks = (stream[start : start + step] for start in range(0, len(stream), step))
    reader = frames.FrameReader()
    assert peak(lambda: [each for block in blocks for each in reader.feed(block)]) < (
        2.5 * len(LARGE)
    )


def test_half_a_frame_is_none() -> None:
    front, worker = socket.socketpair()
    front.sendall(b"".join(frames.encode([({}, [b"abc"])]))[:-1])
    front.close()
    assert frames.receive(worker) is None
    worker.close()


def test_an_answer_comes_back_as_it_was() -> None:
    answer = Response(201, b"x", "text/csv", {"X-Amzn-SageMaker-Custom-Attributes": "a=b"})
    data = b"".join(frames.encode([frames.from_response(answer)]))
    (items,) = frames.FrameReader().feed(data)
    assert frames.to_response(items[0]) == answer


@pytest.mark.parametrize("fields", [{}, {"status": "x", "content_type": "", "headers": {}}])
def test_an_answer_that_is_none(fields: "dict[str, object]") -> None:
    with pytest.raises(frames.FrameError):
        frames.to_response((fields, b""))
