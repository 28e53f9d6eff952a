"""Complete parts arrive from processes that know the token, or an error explains the failure."""

import contextlib
import json
import socket
import threading
import time
from typing import Any, Callable, Iterator, List

import pytest

from sagemaker_mxnet_training.checkpoints import transfer
from sagemaker_mxnet_training.checkpoints.transfer import Endpoint, PartServer, TransferError


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """Record what is slept, and do not."""
    slept: List[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def server() -> Iterator[PartServer]:
    def find(name: str) -> Any:
        return {"weights": (3, [b"a", b"bc"]), "short": (10, [b"12345"])}[name]

    with PartServer("127.0.0.1", find) as opened:
        yield opened


@contextlib.contextmanager
def in_a_thread(call: Callable[..., None], *arguments: object) -> Iterator[List[TransferError]]:
    """Call a function in a thread; give the list of its errors."""
    errors: List[TransferError] = []

    def run() -> None:
        try:
            call(*arguments)
        except TransferError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield errors
    thread.join()


def connect(server: PartServer) -> socket.socket:
    return socket.create_connection((server.endpoint.address, server.endpoint.port))


def put(server: PartServer, name: str, size: int, body: bytes) -> bytes:
    """Return an upload as it is sent."""
    return (
        f"PUT /{name} HTTP/1.1\r\nAuthorization: Bearer {server.endpoint.token}\r\n"
        f"Content-Length: {size}\r\n\r\n"
    ).encode() + body


def test_uploads_are_collected_in_any_order(server: PartServer) -> None:
    parts = {"server-0": b"", "server-1": bytes(3_000_000)}
    with contextlib.ExitStack() as stack:
        for name, content in reversed(list(parts.items())):
            stack.enter_context(in_a_thread(transfer.upload, server.endpoint, name, content))
        collected = {name: b"".join(chunks) for name, chunks in server.collect(parts)}
    assert collected == parts


def test_parts_are_downloaded(server: PartServer) -> None:
    endpoint = Endpoint(*json.loads(json.dumps(server.endpoint)))
    assert transfer.download(endpoint, "weights") == b"abc"


def test_missing_part_is_an_error_at_once(server: PartServer, pauses: List[float]) -> None:
    with pytest.raises(TransferError, match="other: .* HTTP status 404"):
        transfer.download(server.endpoint, "other")
    assert pauses == []


def test_server_reports_why_it_has_no_part(server: PartServer) -> None:
    with in_a_thread(
        transfer.report_failure, server.endpoint, "server-0", "cannot pickle a lock"
    ), pytest.raises(TransferError, match="server-0: cannot pickle a lock"):
        for _, chunks in server.collect(["server-0"]):
            b"".join(chunks)


def test_upload_with_wrong_token_is_rejected(
    server: PartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.2)
    wrong = server.endpoint._replace(token="0" * 32)
    with in_a_thread(transfer.upload, wrong, "server-0", b"evil") as errors, pytest.raises(
        TransferError, match="server-0 was not received within"
    ):
        list(server.collect(["server-0"]))
    assert "server-0" in str(errors[0])


def test_slow_unauthenticated_connections_delay_no_member(
    server: PartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a silent one nor one that sends a byte now and then."""
    monkeypatch.setattr(transfer, "GREETING_S", 0.5)
    with connect(server) as slow, connect(server):
        slow.settimeout(0.2)
        sent = 0
        with in_a_thread(transfer.upload, server.endpoint, "server-0", b"x"):
            collected = [(name, b"".join(c)) for name, c in server.collect(["server-0"])]
        with contextlib.suppress(ConnectionError):
            while sent < 32:
                slow.sendall(b"0")
                sent += 1
                with contextlib.suppress(socket.timeout):
                    assert slow.recv(1) == b""
                    break
        assert sent < 32, "the request as a whole has no limit"
        assert collected == [("server-0", b"x")]


def test_upload_that_is_cut_short_is_an_error(server: PartServer, pauses: List[float]) -> None:
    with connect(server) as peer:
        peer.sendall(put(server, "a", 10, b"12345"))
    with pytest.raises(TransferError, match="a was not received: it was truncated"):
        for _, chunks in server.collect(["a"]):
            b"".join(chunks)
    assert pauses == [transfer.CAUSE_FIRST_S]


def test_download_that_is_cut_short_is_an_error(server: PartServer, pauses: List[float]) -> None:
    with pytest.raises(TransferError, match="short was not received: IncompleteRead"):
        transfer.download(server.endpoint, "short")
    assert pauses == [transfer.CAUSE_FIRST_S]


def test_uploads_end_when_the_server_closes(
    server: PartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of an upload may run as soon as it can, and must not report success then."""
    with in_a_thread(transfer.upload, server.endpoint, "a", b"x") as errors:
        request = server.uploads.get(timeout=60)
        server.uploads.put(request)
        ended, finish, release = threading.Event(), request.finish, request.consumed.set
        monkeypatch.setattr(request, "finish", lambda: (finish(), ended.set()))
        monkeypatch.setattr(request.consumed, "set", lambda: (release(), ended.wait(60)))
        server.close()
    assert len(errors) == 1


def test_upload_that_arrives_during_the_close_ends(
    server: PartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_first = server.uploads.put

    def put_late(request: Any) -> None:
        server.close()
        put_first(request)

    monkeypatch.setattr(server.uploads, "put", put_late)
    with in_a_thread(transfer.upload, server.endpoint, "a", b"x") as errors:
        pass
    assert len(errors) == 1


def test_lost_connection_waits_for_the_cause(pauses: List[float]) -> None:
    """The end of the other process is to be known before this one fails."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1], "0" * 32)
        with in_a_thread(lambda: listener.accept()[0].close()), pytest.raises(TransferError):
            transfer.download(endpoint, "weights")
    with pytest.raises(TransferError):
        transfer.download(endpoint, "weights")
    assert pauses == [transfer.CAUSE_FIRST_S] * 2
