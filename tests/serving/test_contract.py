"""The hosting contract, over real sockets, with real processes."""

import concurrent.futures
import contextlib
import json
import socket
from pathlib import Path
from typing import Iterator

import pytest

from tests.support.jobs import eventually, free_port
from tests.support.real_server import Served, serving, write_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = write_model(tmp_path_factory.mktemp("contract") / "model")
    with serving(model, "--workers", "2", SAGEMAKER_MAX_PAYLOAD_IN_MB=8) as server:
        yield server.healthy()


def test_response_and_its_id(served: Served) -> None:
    answer = served.invoke(b"hello")
    assert (answer.status, answer.body) == (200, b"hello")
    served.wait_for_log(answer.headers["x-request-id"])
    assert served.invoke(b"hello", **{"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"


def test_ping_is_empty_and_in_no_log(served: Served) -> None:
    """Defect 16 of the peer: a ping is a line in the log, and a request two."""
    answer = served.ask("GET", "/ping")
    assert (answer.status, answer.body) == (200, b"")
    assert served.ask("GET", "/ping?from=here").status == 200
    served.invoke(b"x", **{"X-Request-Id": "after-ping"})
    served.wait_for_log("after-ping")
    assert "/ping" not in served.log
    assert served.log.count("after-ping") == 1


def test_model_is_loaded_once_and_shared(served: Served) -> None:
    """Defect 20 of the peer: each worker loads the model twice."""
    loaded = {served.invoke(b"loaded").body for _ in range(8)}
    assert loaded == {str(served.model_process().pid).encode()}


def test_execution_parameters(served: Served) -> None:
    answer = served.ask("GET", "/execution-parameters")
    assert json.loads(answer.body) == {
        "MaxConcurrentTransforms": 2,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 8,
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/invocations", 405, b"expected POST"),
        ("POST", "/execution-parameters", 405, b"expected GET"),
        ("POST", "/ping", 405, b"expected GET or HEAD"),
        ("GET", "/models", 404, b"expected /ping, /invocations"),
        ("GET", "/", 404, b"expected /ping"),
    ],
)
def test_errors_name_what_was_expected(
    served: Served, method: str, path: str, status: int, words: bytes
) -> None:
    """Defect 17 of the peer: every mistake is a 500."""
    answer = served.ask(method, path)
    assert answer.status == status
    assert words in answer.body


def test_body_that_is_too_large_returns_413(served: Served) -> None:
    """Defect 11 of the peer: 413 without a word."""
    answer = served.invoke(b"x" * (8 * 1024 * 1024 + 1))
    assert answer.status == 413
    assert b"SAGEMAKER_MAX_PAYLOAD_IN_MB" in answer.body
    with served.connect() as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(9):
                connection.sendall(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_large_responses(served: Served) -> None:
    """Defect 11 of the peer: an answer above 6.5 MB kills the worker."""
    before = served.workers()
    answer = served.invoke(b"long 50000000")
    assert (answer.status, len(answer.body)) == (200, 50_000_000)
    assert served.workers() == before


def test_exception_is_only_logged(served: Served) -> None:
    """Defects 10 and 16 of the peer: tracebacks and texts to clients, and cut up in the log."""
    answer = served.invoke(b"raise treasure")
    assert answer.status == 500
    assert b"ValueError" in answer.body
    assert b"hidden" not in answer.body and b"Traceback" not in answer.body
    assert "hidden" not in str(answer.headers)
    served.wait_for_log("hidden-treasure")


def test_many_clients_at_once(served: Served) -> None:
    """Defect 13 of the peer: of 140 requests at once, 40 are refused."""
    with concurrent.futures.ThreadPoolExecutor(140) as pool:
        bodies = [f"client {number}".encode() for number in range(140)]
        answers = list(pool.map(served.invoke, bodies))
    assert [answer.body for answer in answers] == bodies


def test_a_thousand_connections(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(served.connect()) for _ in range(1000)]
        for connection in connections:
            connection.sendall(b"POST /invocations HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi")
        for connection in connections:
            data = b""
            while not data.endswith(b"\r\n\r\nhi"):
                block = connection.recv(4096)
                assert block, data
                data += block
            assert data.startswith(b"HTTP/1.1 200 ")
        assert served.ping() == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /ping HTTP/9.9\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 2_000_000,
    ],
)
def test_malformed_requests_do_not_affect_others(served: Served, data: bytes) -> None:
    with served.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 2"))
    assert served.invoke(b"next").body == b"next"


def test_disconnect_after_half_a_body(served: Served) -> None:
    before = served.workers()
    for data in (
        b"POST /invocations HTTP/1.1\r\nContent-Length: 1000\r\n\r\nhalf",
        b"POST /invocations HTTP/1.1\r\nContent-Length: 9\r\n\r\nsleep 0.2",
    ):
        with served.connect() as connection:
            connection.sendall(data)
    eventually(lambda: served.log.count(" 499 ") >= 2, "two clients gone in the access log")
    assert served.invoke(b"next").body == b"next"
    assert served.workers() == before


def test_slow_clients_block_no_worker(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            slow = stack.enter_context(served.connect())
            slow.sendall(b"POST /invocations HTTP/1.1\r\nContent-Length: 1000\r\n\r\nslow")
        assert served.invoke(b"fast").body == b"fast"


def test_taken_port_names_its_process(served: Served, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with serving(model, port=served.port) as second:
        assert second.ended() == 1
        assert f"cannot listen on 127.0.0.1 port {served.port}" in second.lines[-1]
    assert served.invoke(b"mine").body == b"mine"


def test_no_batches_for_functions_of_a_script(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    variables = {
        "SAGEMAKER_MXNET_SERVING_BATCH_SIZE": "4",
        "SAGEMAKER_MXNET_SERVING_BATCH_DELAY": "0.05",
    }
    with serving(model, "--workers", "1", **variables) as served:
        served.healthy()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            bodies = [str(number).encode() for number in range(8)]
            assert [each.body for each in pool.map(served.invoke, bodies)] == bodies


def test_metrics_port(tmp_path: Path) -> None:
    port = free_port()
    model = write_model(tmp_path / "model")
    variables = {
        "SAGEMAKER_MXNET_SERVING_METRICS_PORT": port,
        "SAGEMAKER_MXNET_SERVING_ACCESS_LOG": "json",
    }
    with serving(model, "--workers", "1", **variables) as served:
        served.healthy().invoke(b"x", **{"X-Request-Id": "counted"})
        served.invoke(b"exit")
        for expected in (  # a request is counted after its response
            'sagemaker_mxnet_serving_requests_total{status="200"} 1.0',
            'sagemaker_mxnet_serving_requests_total{status="500"} 1.0',
            "sagemaker_mxnet_serving_batch_requests_count 3.0",
            'sagemaker_mxnet_serving_restarts_total{process="worker"} 2.0',
        ):
            eventually(lambda line=expected: line in served.metrics(port), expected)
        assert json.loads(served.wait_for_log('"id":"counted"'))["status"] == 200


def test_load_in_workers(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with serving(model, "--workers", "2", SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS="true") as served:
        served.healthy()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            loaded = {int(each.body) for each in pool.map(served.invoke, [b"loaded"] * 16)}
        assert loaded <= set(served.workers())
        assert served.invoke(b"exit").status == 500
        served.healthy()
        assert served.invoke(b"next").body == b"next"


def test_model_directory_is_not_written(served: Served) -> None:
    child = served.model_process()
    settings = json.loads(child.cmdline()[-1])
    found = {path.name for path in Path(settings["model_dir"]).rglob("*")}
    assert found == {"code", "inference.py"}


def test_header_of_the_script_has_no_newline(tmp_path: Path) -> None:
    script = (
        "def model_fn(model_dir):\n    return None\n\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    return 'x', 'text/plain\\r\\nSet-Cookie: a=b'\n"
    )
    with serving(write_model(tmp_path / "model", script), "--workers", "1") as served:
        answer = served.healthy().invoke(b"x")
        assert "set-cookie" not in answer.headers
