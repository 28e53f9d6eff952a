"""Frames: whatever is sent arrives, in whichever pieces; anything else is refused."""

import contextlib
import socket
import threading
import tracemalloc
from typing import Callable, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.inference import Request, Response

FRAMES = st.lists(
    st.lists(st.tuples(st.dictionaries(st.text(), st.text()), st.binary()), max_size=4), max_size=4
)


def strip(items: List[worker_frames.Item]) -> List[worker_frames.Item]:
    return [({k: v for k, v in fields.items() if k != "size"}, body) for fields, body in items]


@given(FRAMES, st.integers(1, 50))
def test_frames_in_any_pieces(sent: List[List[worker_frames.Item]], step: int) -> None:
    sent = [strip(items) for items in sent]
    stream = b"".join(
        b"".join(worker_frames.encode([(fields, [body]) for fields, body in items]))
        for items in sent
    )
    reader = worker_frames.FrameReader()
    found = [
        strip(items)
        for start in range(0, len(stream), step)
        for items in reader.feed(stream[start : start + step])
    ]
    assert found == sent


@given(st.binary(max_size=200))
def test_invalid_or_partial_frame(data: bytes) -> None:
    with contextlib.suppress(worker_frames.FrameError):
        list(worker_frames.FrameReader().feed(data))


@pytest.mark.parametrize(
    "size", [b'[{"size":-1}]', b'[{"size":true}]', b'[{"size":9}]', b"{}", b"7"]
)
def test_lengths_that_differ(size: bytes) -> None:
    with pytest.raises(worker_frames.FrameError):
        worker_frames.decode(size, b"abc")


def test_frame_that_is_too_large_is_rejected_at_once() -> None:
    with pytest.raises(worker_frames.FrameError):
        list(
            worker_frames.FrameReader().feed(
                worker_frames.HEAD.pack(10, worker_frames.BODY_LIMIT + 1)
            )
        )


def test_a_large_request_through_a_socket() -> None:
    body = bytes(range(256)) * 20000
    headers = {"content-type": "application/x-npy", "accept": "*/*", "a": "b"}
    request = Request("id-1", body, "application/x-npy", "*/*", headers)
    front, worker = socket.socketpair()
    pieces = [body[:1000], body[1000:]]
    parts = worker_frames.encode([({"id": "id-1", "headers": headers}, pieces)])
    sender = threading.Thread(target=worker_frames.send, args=(front, parts))
    sender.start()
    items = worker_frames.receive(worker)
    sender.join()
    assert items is not None
    assert [worker_frames.to_request(each) for each in items] == [request]
    front.close()
    assert worker_frames.receive(worker) is None
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


def test_large_body_is_copied_once() -> None:
    front, worker = socket.socketpair()
    parts = worker_frames.encode([({}, [LARGE])])
    with front, worker:
        sender = threading.Thread(target=worker_frames.send, args=(front, parts))
        sender.start()
        assert peak(lambda: worker_frames.receive(worker)) < 2.5 * len(LARGE)
        sender.join()


def test_large_response_is_copied_once() -> None:
    stream, step = b"".join(worker_frames.encode([({}, [LARGE])])), 65536
    blocks = (stream[start : start + step] for start in range(0, len(stream), step))
    reader = worker_frames.FrameReader()
    assert peak(lambda: [each for block in blocks for each in reader.feed(block)]) < (
        2.5 * len(LARGE)
    )


def test_partial_frame() -> None:
    front, worker = socket.socketpair()
    front.sendall(b"".join(worker_frames.encode([({}, [b"abc"])]))[:-1])
    front.close()
    assert worker_frames.receive(worker) is None
    worker.close()


def test_response_round_trip() -> None:
    answer = Response(201, b"x", "text/csv", {"X-Amzn-SageMaker-Custom-Attributes": "a=b"})
    data = b"".join(
        worker_frames.encode([worker_frames.from_response(Request("id-1", b""), answer)])
    )
    (items,) = worker_frames.FrameReader().feed(data)
    assert items[0][0]["id"] == "id-1"
    assert worker_frames.to_response(items[0]) == answer


@pytest.mark.parametrize("fields", [{}, {"status": "x", "content_type": "", "headers": {}}])
def test_malformed_response(fields: "dict[str, object]") -> None:
    with pytest.raises(worker_frames.FrameError):
        worker_frames.to_response((fields, b""))
