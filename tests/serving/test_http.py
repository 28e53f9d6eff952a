"""HTTP as clients send it: what uvicorn and the application make of it together."""

import contextlib
import gzip
import re
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from tests.support.real_server import Served, serving, write_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = write_model(tmp_path_factory.mktemp("http") / "model")
    with serving(model, "--workers", "1", SAGEMAKER_MAX_PAYLOAD_IN_MB=1) as server:
        yield server.healthy()


def post(body: bytes, head: bytes = b"", version: bytes = b"1.1") -> bytes:
    line = b"POST /invocations HTTP/%s\r\nContent-Length: %d\r\n" % (version, len(body))
    return line + head + b"\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    head = b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    return head + b"".join(parts) + b"0\r\nA-Trailer: x\r\n\r\n"


Answers = List[Tuple[int, bytes, bytes]]


def talk(served: Served, *sent: bytes, count: int = 1) -> Answers:
    """Send bytes on one connection; return status, head and body of so many responses."""
    answers: Answers = []
    with served.connect() as connection, connection.makefile("rb") as stream:
        for data in sent:
            connection.sendall(data)
        for _ in range(count):
            status = int(stream.readline().split()[1])
            head = b"".join(iter(stream.readline, b"\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", head)
            answers.append((status, head, stream.read(int(length[1]) if length else 0)))
        if b"connection: close" in answers[-1][1]:
            assert stream.read() == b"", "the connection is closed"
    return answers


def bodies(answers: Answers) -> List[bytes]:
    return [body for _, _, body in answers]


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    sent = [b"sleep 0.2", *(b"%d" % number for number in range(50))]
    data = b"".join(chunked(each) if index % 2 else post(each) for index, each in enumerate(sent))
    step = 700
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    assert bodies(talk(served, *pieces, count=len(sent)))[1:] == sent[1:]


def test_response_head(served: Served) -> None:
    ((status, head, _),) = talk(served, post(b"x"))
    assert status == 200
    names = [line.partition(b":")[0] for line in head.splitlines()]
    assert names == [b"date", b"content-length", b"x-request-id", b"content-type"]


def test_chunks_are_joined(served: Served) -> None:
    assert bodies(talk(served, chunked(*[b"ab"] * 400))) == [b"ab" * 400]


def test_http_1_0_is_answered_and_closed(served: Served) -> None:
    with served.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(post(b"x", version=b"1.0"))
        response = stream.read()  # to the end of the connection
    assert response.startswith(b"HTTP/1.1 200 ") and response.endswith(b"\r\n\r\nx")


def test_keep_alive(served: Served) -> None:
    answers = talk(served, post(b"1"), post(b"2"), post(b"3", b"Connection: close\r\n"), count=3)
    assert [b"connection: close" in head for _, head, _ in answers] == [False, False, True]


def test_head_request_has_no_body(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"HEAD /invocations HTTP/1.1\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ") and body == b""


def test_expect_100_continue(served: Served) -> None:
    with served.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(post(b"body", b"Expect: 100-continue\r\n")[:-4])
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(b"body")
        assert stream.readline().startswith(b"HTTP/1.1 200 ")


def test_expect_100_continue_with_a_large_body(served: Served) -> None:
    data = post(b"x" * 1_100_000, b"Expect: 100-continue\r\n")
    ((status, head, _),) = talk(served, data[:-1_100_000])
    assert (status, b"connection: close" in head) == (413, True)


def test_rejected_body_is_read_to_its_end(served: Served) -> None:
    answers = talk(served, post(b"x" * 1_100_000) + post(b"next"), count=2)
    assert [(status, body) for status, _, body in answers][1] == (200, b"next")
    assert answers[0][0] == 413


@pytest.mark.parametrize(
    "head",
    [
        b"POST /invocations HTTP/1.1\r\nName: %s" % (b"v" * 70_000),
        b"POST /invocations HTTP/1.1\r\n" + b"\r\n".join(b"n%d: v" % n for n in range(20_000)),
        b"POST /%s HTTP/1.1" % (b"p" * 70_000),
        b"POST /%s HTTP/1.0" % (b"p" * 65_534),
        b"POST /invocations?%s HTTP/1.1" % (b"q" * 200_000),
    ],
    ids=["header", "many headers", "path", "path without headers", "query string"],
)
def test_head_that_is_too_long_returns_431(served: Served, head: bytes) -> None:
    ((status, _, body),) = talk(served, head + b"\r\n\r\n")
    assert (status, b"exceed 65536 bytes" in body) == (431, True)
    assert served.invoke(b"next").body == b"next"


def test_script_decompresses_bodies_itself(served: Served) -> None:
    """Only text, which is decoded for the script, must not be compressed."""
    body, head = gzip.compress(b"body"), b"Content-Encoding: gzip\r\n"
    assert bodies(talk(served, post(body, head))) == [body]
    ((status, _, text),) = talk(served, post(body, head + b"Content-Type: text/csv\r\n"))
    assert (status, b"Content-Encoding 'gzip'" in text) == (415, True)


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"


def test_upgrade_is_ignored(served: Served) -> None:
    ((status, _, _),) = talk(served, b"GET /execution-parameters HTTP/1.1\r\n" + UPGRADE + b"\r\n")
    assert status == 200


def test_body_with_an_upgrade_is_rejected(served: Served) -> None:
    ((status, _, body),) = talk(served, post(b"x", UPGRADE))
    assert (status, b"without the header Upgrade" in body) == (400, True)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\r\n\r\n", b"GET /ping HTTP/1.1\r\nContent-Length: -1\r\n\r\n"]
)
def test_malformed_request_returns_400(served: Served, data: bytes) -> None:
    ((status, head, _),) = talk(served, data)
    assert (status, b"connection: close" in head) == (400, True)


def test_malformed_chunk_fails_its_request_alone(served: Served) -> None:
    head = b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served.connect() as connection:
        connection.sendall(post(b"first") + head + b"rubbish\r\n")
        with contextlib.suppress(ConnectionError):
            while connection.recv(4096):
                pass
    assert served.invoke(b"next").body == b"next"


def test_disconnect_ends_each_request_of_a_pipeline(served: Served) -> None:
    """A request that nobody waits for would hold its memory, and delay a stop."""
    with served.connect() as connection:
        connection.sendall(post(b"sleep 0.5", b"X-Request-Id: first\r\n") + post(b"second"))
    assert " 499 " in served.wait_for_log("id first")


def test_reasons_are_logged_at_the_level_debug(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with serving(model, "--workers", "1", SAGEMAKER_CONTAINER_LOG_LEVEL="DEBUG") as debugged:
        debugged.healthy()
        for path in ("/first", "/second"):
            assert debugged.ask("GET", path).status == 404
            debugged.wait_for_log(f"is rejected with 404: '{path}' does not exist")
        talk(debugged, b"\x16\x03\x01\r\n\r\n")
        debugged.wait_for_log("Invalid HTTP request received.")
