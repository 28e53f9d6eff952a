"""Horovod's rendezvous: the store, its requests, and the program that serves them."""

import http.client
import socket
import subprocess
from typing import Iterator, Optional, Tuple

import pytest

from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_training.roles import rendezvous
from sagemaker_mxnet_training.roles.rendezvous import Request, Store, parse

MODULE = "sagemaker_mxnet_training.roles.rendezvous"


def test_store_returns_what_was_put() -> None:
    store = Store()
    assert store.answer(Request("GET", "global", "0")) == (404, b"")
    assert store.answer(Request("PUT", "global", "0", b"address")) == (200, b"")
    assert store.answer(Request("GET", "global", "0")) == (200, b"address")
    assert store.answer(Request("GET", "local_a", "0")) == (404, b"")


def test_store_forgets_a_rank_that_has_met_the_others() -> None:
    """A second ``hvd.init()`` must not find the addresses of the first."""
    store = Store()
    for key in ("1", "rank_1", "11", "2"):
        store.answer(Request("PUT", "global", key, b"x"))
    assert store.answer(Request("DELETE", "global", "1")) == (200, b"")
    found = [store.answer(Request("GET", "global", key))[0] for key in ("1", "rank_1", "11", "2")]
    assert found == [404, 404, 200, 200]


def test_store_accepts_a_delete_of_nothing() -> None:
    assert Store().answer(Request("DELETE", "global", "1")) == (200, b"")


def test_store_rejects_an_unknown_method() -> None:
    assert Store().answer(Request("POST", "global", "1")) == (400, b"")


def test_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MAX_TOTAL_BYTES", 10)
    store = Store()
    assert store.answer(Request("PUT", "s", "a", b"12345678"))[0] == 200
    assert store.answer(Request("PUT", "s", "b", b"12345678"))[0] == 413
    store.answer(Request("DELETE", "s", "a"))
    assert store.answer(Request("PUT", "s", "b", b"12345678"))[0] == 200


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        (b"GET /global/0 HTTP/1.1\r\nHost: a\r\n\r\n", Request("GET", "global", "0")),
        (
            b"PUT /local_a/1 HTTP/1.1\r\ncontent-length: 3\r\nHost: a\r\n\r\nabc",
            Request("PUT", "local_a", "1", b"abc"),
        ),
        (b"PUT /s/a/b HTTP/1.1\r\nContent-Length:0\r\n\r\n", Request("PUT", "s", "a/b")),
        (b"", None),
        (b"GET /global/0 HTTP/1.1\r\nHost:", None),
        (b"PUT /s/a HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", None),
    ],
)
def test_request_is_parsed(data: bytes, request_: Optional[Request]) -> None:
    assert parse(data) == request_


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /scope HTTP/1.1\r\n\r\n",
        b"GET //key HTTP/1.1\r\n\r\n",
        b"PUT /s/k HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n",
        b"G" * 5000,
        b"GET /" + b"s" * 5000 + b"/k HTTP/1.1\r\n\r\n",
    ],
)
def test_malformed_request_is_rejected(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse(data)


@pytest.fixture(name="served")
def _served() -> Iterator[Tuple[str, int]]:
    """A server that admits 127.0.0.2 only, as the program that a host runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = ("--fd", str(listener.fileno()), "--allow", "127.0.0.2")
        argv = program.argv(MODULE, *options)
        with subprocess.Popen(argv, pass_fds=[listener.fileno()]) as process:
            yield listener.getsockname()
            process.terminate()


def _ask(
    address: Tuple[str, int], method: str, path: str, body: bytes = b"", source: str = "127.0.0.2"
) -> Tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=60, source_address=(source, 0))
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read()


def test_server_answers_the_hosts_of_the_job(served: Tuple[str, int]) -> None:
    assert _ask(served, "GET", "/global/0")[0] == 404
    value = b"v" * 200_000
    assert _ask(served, "PUT", "/global/0", value)[0] == 200
    assert _ask(served, "GET", "/global/0") == (200, value)
    assert _ask(served, "DELETE", "/global/0")[0] == 200
    assert _ask(served, "GET", "/global/0")[0] == 404


def test_server_refuses_a_large_value_by_its_head(served: Tuple[str, int]) -> None:
    with socket.create_connection(served, 60, ("127.0.0.2", 0)) as connection:
        connection.sendall(b"PUT /global/0 HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_server_refuses_other_hosts(served: Tuple[str, int]) -> None:
    with pytest.raises((http.client.HTTPException, OSError)):
        _ask(served, "GET", "/global/0", source="127.0.0.3")
    assert _ask(served, "GET", "/global/0")[0] == 404


def test_server_survives_many_idle_connections(served: Tuple[str, int]) -> None:
    idle = [
        socket.create_connection(served, 60, ("127.0.0.2", 0))
        for _ in range(rendezvous.MAX_CONNECTIONS + 1)
    ]
    assert idle[0].recv(1) == b""  # the oldest was closed
    assert _ask(served, "GET", "/global/0")[0] == 404
    for connection in idle:
        connection.close()
