"""Connections: what callers send, in any pieces, becomes requests; answers keep their order."""

from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_serving import frames, http_protocol
from sagemaker_mxnet_serving.http_protocol import Connection, Connections, Exchange
from sagemaker_mxnet_serving.messages import Response

LIMIT = 1000


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.reading = True
        self.unsent = 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent


class Echo:
    """Answers with the body: at once below ``/now``, and elsewhere when a test says so."""

    def __init__(self) -> None:
        self.waiting: List[Exchange] = []
        self.lost: List[Exchange] = []
        self.refused: List[int] = []

    def begin(self, exchange: Exchange) -> None:
        if exchange.url == b"/refused":
            exchange.answer(Response(413, b"no"))

    def grew(self, exchange: Exchange, size: int) -> None:
        if exchange.received > LIMIT:
            exchange.answer(Response(413, b"no"))

    def handle(self, exchange: Exchange) -> None:
        self.waiting.append(exchange)
        if exchange.url == b"/now":
            self.answer()

    def refuse(self, exchange: Exchange, status: int, text: str) -> None:
        self.refused.append(status)
        exchange.answer(Response(status, text.encode()), "id")

    def gone(self, exchange: Exchange) -> None:
        self.lost.append(exchange)

    def answer(self) -> None:
        exchange = self.waiting.pop(0)
        exchange.answer(Response(200, b"".join(exchange.pieces), "text/plain"), "id")


def connect() -> Tuple[Connection, Transport, Echo]:
    echo, transport = Echo(), Transport()
    connection = Connection(Connections(echo, LIMIT))
    connection.connection_made(transport)
    return connection, transport, echo


def post(body: bytes, url: bytes = b"/", head: bytes = b"") -> bytes:
    length = str(len(body)).encode()
    return b"POST %s HTTP/1.1\r\nContent-Length: %s\r\n%s\r\n%s" % (url, length, head, body)


def chunked(body: bytes) -> bytes:
    head = b"POST /now HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%s\r\n0\r\nA-Trailer: x\r\n\r\n" % (len(body), body)


def bodies(transport: Transport) -> List[bytes]:
    parts = transport.written.split(b"HTTP/1.1 ")[1:]
    return [part.partition(b"\r\n\r\n")[2] for part in parts]


@given(st.lists(st.binary(min_size=1, max_size=50).map(bytes.hex), min_size=1), st.integers(1, 99))
def test_requests_in_any_pieces(texts: List[str], step: int) -> None:
    connection, transport, _ = connect()
    sent = [text.encode() for text in texts]
    data = b"".join(
        post(body, b"/now") if index % 2 else chunked(body) for index, body in enumerate(sent)
    )
    for start in range(0, len(data), step):
        connection.data_received(data[start : start + step])
    assert bodies(transport) == sent
    assert not transport.closed


def test_an_answer_has_a_date_a_length_an_id_and_a_type() -> None:
    connection, transport, _ = connect()
    connection.data_received(post(b"x", b"/now"))
    status, *lines = transport.written.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert status == b"HTTP/1.1 200 OK"
    assert lines[0].startswith(b"date: ") and lines[0].endswith(b" GMT")
    assert lines[1:] == [b"content-length: 1", b"x-request-id: id", b"content-type: text/plain"]


def test_requests_that_are_sent_before_the_answer_are_answered_in_their_order() -> None:
    connection, transport, echo = connect()
    count = 5000  # more than Python's stack is deep
    connection.data_received(post(b"first") + post(b"n", b"/now") * count)
    assert not transport.reading and transport.written == b""
    echo.answer()
    assert bodies(transport) == [b"first"] + [b"n"] * count
    assert transport.reading


def test_what_takes_its_answer_slowly_gets_no_other() -> None:
    connection, transport, echo = connect()
    connection.data_received(post(b"first") + post(b"second", b"/now"))
    connection.pause_writing()
    echo.answer()
    assert bodies(transport) == [b"first"]
    connection.resume_writing()
    assert bodies(transport) == [b"first", b"second"]


@pytest.mark.parametrize(
    ("head", "closed"),
    [(b"", False), (b"Connection: close\r\n", True), (b"Connection: keep-alive\r\n", False)],
)
def test_a_connection_goes_on_unless_the_caller_wants_it_closed(head: bytes, closed: bool) -> None:
    connection, transport, _ = connect()
    connection.data_received(post(b"x", b"/now", head))
    assert transport.closed is closed
    assert (b"connection: close" in transport.written) is closed


def test_http_1_0_is_answered_and_closed() -> None:
    connection, transport, _ = connect()
    connection.data_received(b"GET /now HTTP/1.0\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    assert transport.closed


def test_an_answer_to_head_has_no_body() -> None:
    connection, transport, echo = connect()
    connection.data_received(b"HEAD / HTTP/1.1\r\n\r\n")
    echo.waiting.pop().answer(Response(200, b"four"))
    assert b"content-length: 4\r\n" in transport.written
    assert bodies(transport) == [b""]


def test_a_body_that_waits_to_be_asked_for() -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\n"
    connection, transport, _ = connect()
    data = post(b"body", b"/now", b"Expect: 100-continue\r\n")
    connection.data_received(data[:-4])
    assert transport.written == head
    connection.data_received(data[-4:])
    assert bodies(transport) == [b"", b"body"]


def test_a_body_that_is_refused_before_it_is_sent() -> None:
    connection, transport, _ = connect()
    connection.data_received(post(b"body", b"/refused", b"Expect: 100-continue\r\n")[:-4])
    assert transport.written.startswith(b"HTTP/1.1 413 ")
    assert transport.closed


def test_a_body_that_is_refused_is_read_to_its_end() -> None:
    connection, transport, _ = connect()
    connection.data_received(post(b"x" * 2 * LIMIT) + post(b"next", b"/now"))
    assert bodies(transport) == [b"no", b"next"]
    assert not transport.closed


def test_a_body_without_an_end_is_cut_off() -> None:
    connection, transport, _ = connect()
    connection.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        if not transport.closed:
            connection.data_received(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    assert transport.closed
    assert bodies(transport) == [b"no"]


def test_chunks_without_an_end_are_refused_in_words() -> None:
    connection, transport, _ = connect()
    connection.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"1;a=" + b"b" * 10_000 + b"\r\nx\r\n"
    for _ in range(connection._shared.body_limit // len(chunk) + 1):
        connection.data_received(chunk)
    assert transport.closed
    assert transport.written.startswith(b"HTTP/1.1 413 ")
    assert b"longer than" in transport.written


def test_small_chunks_are_few_pieces() -> None:
    connection, _, echo = connect()
    connection.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.data_received(b"2\r\nab\r\n" * 400 + b"0\r\n\r\n")
    (exchange,) = echo.waiting
    assert (b"".join(exchange.pieces), exchange.received) == (b"ab" * 400, 800)
    assert len(exchange.pieces) == 2
    fields = frames.encode([({}, exchange.pieces)])
    assert frames.decode(fields[0][frames.HEAD.size :], b"".join(fields[1:]))[0][1] == b"ab" * 400


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"


def test_an_upgrade_is_not_taken() -> None:
    connection, transport, _ = connect()
    connection.data_received((b"GET /now HTTP/1.1\r\n" + UPGRADE + b"\r\n") * 2)
    connection.data_received(post(b"next", b"/now"))
    assert bodies(transport) == [b"", b"", b"next"]


def test_a_body_with_an_upgrade_is_refused_and_not_lost() -> None:
    connection, transport, echo = connect()
    connection.data_received(post(b"x", b"/now", UPGRADE))
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert b"without the header Upgrade" in transport.written
    assert transport.closed and not echo.waiting


def test_what_is_no_request_is_told_so() -> None:
    connection, transport, _ = connect()
    connection.data_received(b"\x16\x03\x01\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert transport.closed


def test_what_is_no_request_does_not_harm_the_one_before() -> None:
    connection, transport, echo = connect()
    connection.data_received(post(b"first") + b"rubbish\r\n\r\n")
    assert not transport.closed
    echo.answer()
    assert bodies(transport) == [b"first"]
    assert transport.closed


def test_a_broken_body_is_told_to_both() -> None:
    connection, transport, echo = connect()
    connection.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nrubbish\r\n")
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: id\r\n" in transport.written
    assert b"connection: close\r\n" in transport.written
    assert transport.closed
    assert (echo.refused, echo.lost) == ([400], [])


def test_a_broken_body_does_not_harm_those_before() -> None:
    connection, transport, echo = connect()
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.data_received(post(b"first") + post(b"second") + head + b"rubbish\r\n")
    echo.answer()
    assert transport.reading and not transport.closed
    connection.data_received(b"more rubbish\r\n")
    echo.answer()
    assert bodies(transport) == [b"first", b"second"]
    assert transport.closed
    assert (echo.refused, echo.lost) == ([], [])


def test_a_head_without_an_end_is_cut_off() -> None:
    connection, transport, _ = connect()
    connection.data_received(b"GET / HTTP/1.1\r\n")
    for _ in range(10):
        if not transport.closed:
            connection.data_received(b"a: " + b"b" * http_protocol.HEAD_LIMIT + b"\r\n")
    assert transport.written.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("step", [10**6, 1000])
def test_a_head_that_is_too_long_is_refused_in_whatever_blocks(step: int) -> None:
    connection, transport, echo = connect()
    data = b"GET /now HTTP/1.1\r\na: " + b"b" * http_protocol.HEAD_LIMIT + b"\r\n\r\n"
    for start in range(0, len(data), step):
        if not transport.closed:
            connection.data_received(data[start : start + step])
    assert transport.closed and not echo.waiting
    assert transport.written.startswith(b"HTTP/1.1 431 ")


def test_a_head_is_counted() -> None:
    connection, _, echo = connect()
    connection.data_received(b"GET /url HTTP/1.1\r\nName: value\r\nA:b\r\n\r\n")
    assert echo.waiting[0].head == len("/url" + "Name" + "value" + "A" + "b")


def test_a_caller_that_goes_away_is_told() -> None:
    connection, _, echo = connect()
    connection.data_received(post(b"first") + post(b"second"))
    connection.connection_lost(None)
    assert [each.received for each in echo.lost] == [5]


@pytest.mark.parametrize(
    ("data", "seconds", "written"),
    [
        (b"", http_protocol.KEEP_ALIVE, b""),
        (post(b"x", b"/now"), http_protocol.KEEP_ALIVE, b"HTTP/1.1 200 "),
        (b"POST / HT", http_protocol.PATIENCE, b"HTTP/1.1 408 "),
        (post(b"half")[:-1], http_protocol.PATIENCE, b"HTTP/1.1 408 "),
        (post(b"refused", b"/refused")[:-1], http_protocol.PATIENCE, b"HTTP/1.1 413 "),
    ],
)
def test_a_caller_that_is_too_slow(data: bytes, seconds: float, written: bytes) -> None:
    connection, transport, _ = connect()
    connection.data_received(data)
    now = connection._shared.now
    connection.look(now + seconds - 1)
    assert not transport.closed
    connection.look(now + seconds + 1)
    assert transport.closed
    assert transport.written.startswith(written)
    assert transport.written.count(b"HTTP/1.1 ") <= 1


def test_a_model_may_be_slow() -> None:
    connection, transport, echo = connect()
    connection.data_received(post(b"x"))
    connection.look(connection._shared.now + 3600)
    echo.answer()
    assert not transport.closed


def test_a_body_that_makes_progress_may_take_its_time() -> None:
    connection, transport, echo = connect()
    large = Connections(echo, 1024 * 1024)
    connection._shared = large
    connection.data_received(b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n")
    for number in range(1, 5):
        connection.data_received(b"x" * http_protocol.PROGRESS)
        large.now = connection._deadline + 1
        connection.look(large.now)
        assert not transport.closed, number
    connection.look(connection._deadline + 1)
    assert transport.closed


def test_an_answer_that_is_not_taken() -> None:
    connection, transport, echo = connect()
    connection.data_received(post(b"x"))
    transport.unsent = 300_000
    connection.pause_writing()
    echo.answer()
    for _ in range(3):
        transport.unsent -= http_protocol.PROGRESS
        connection.look(connection._write_deadline + 1)
        assert not transport.closed
    connection.look(connection._write_deadline + 1)
    assert transport.closed


def test_a_connection_is_shut_after_its_answer() -> None:
    connection, transport, echo = connect()
    connection.data_received(post(b"x"))
    connection.shut()
    assert not transport.closed
    echo.answer()
    assert transport.closed
    assert b"connection: close" in transport.written


def test_an_idle_connection_is_shut_at_once() -> None:
    connection, transport, _ = connect()
    connection.shut()
    assert transport.closed


@given(st.binary(max_size=300))
def test_any_bytes_are_requests_or_refused(data: bytes) -> None:
    connection, transport, _ = connect()
    connection.data_received(data)
    assert transport.written == b"" or transport.written.startswith(b"HTTP/1.1 ")
