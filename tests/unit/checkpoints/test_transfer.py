"""Parts arrive whole from those who know the token, or an error says why not."""

import json
import socket
import threading
import time
from typing import Iterator, List

import pytest

from sagemaker_mxnet_training.checkpoints import transfer
from sagemaker_mxnet_training.checkpoints.transfer import Listener, Place, TransferError


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """Record what is slept, and do not."""
    slept: List[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener("127.0.0.1") as opened:
        yield opened


def test_parts_are_collected_in_any_order(listener: Listener) -> None:
    parts = {"server-0": b"", "server-1": bytes(3_000_000)}
    threads = [
        threading.Thread(target=transfer.give, args=(listener.place, name, parts[name]))
        for name in reversed(list(parts))
    ]
    for thread in threads:
        thread.start()
    collected = {name: b"".join(chunks) for name, chunks in listener.collect(parts)}
    for thread in threads:
        thread.join()
    assert collected == parts


def test_parts_are_fetched(listener: Listener) -> None:
    listener.serve({"weights": (3, [b"a", b"bc"])}.__getitem__)
    place = Place.from_json(json.loads(json.dumps(listener.place.to_json())))
    assert transfer.fetch(place, "weights") == b"abc"
    with pytest.raises(TransferError, match="there is no other"):
        transfer.fetch(place, "other")


def test_a_sender_says_why_it_has_nothing(listener: Listener) -> None:
    sender = threading.Thread(
        target=transfer.give_up, args=(listener.place, "server-0", "cannot pickle a lock")
    )
    sender.start()
    with pytest.raises(TransferError, match="server-0: cannot pickle a lock"):
        list(listener.collect(["server-0"]))
    sender.join()


def test_a_stranger_is_not_listened_to(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.2)
    wrong = Place(listener.place.address, listener.place.port, "0" * 32)
    transfer.give(wrong, "server-0", b"evil")
    with pytest.raises(TransferError, match="server-0 did not arrive within"):
        list(listener.collect(["server-0"]))


def test_a_part_that_is_cut_short_or_altered_is_noticed(
    listener: Listener, pauses: List[float]
) -> None:
    header = json.dumps({"give": "a", "size": 10}).encode()
    greeting = listener.place.token.encode() + len(header).to_bytes(4, "big") + header
    for body, message in ((b"12345", "cut short"), (b"1234567890" + bytes(32), "altered")):
        with socket.create_connection((listener.place.address, listener.place.port)) as peer:
            peer.sendall(greeting + body)
        with pytest.raises(TransferError, match=message):
            for _, chunks in listener.collect(["a"]):
                b"".join(chunks)
    assert pauses == [transfer.CAUSE_FIRST] * 2


def test_the_end_of_the_other_process_is_known_before_this_one_fails(pauses: List[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = Place("127.0.0.1", server.getsockname()[1], "0" * 32)

        def hang_up() -> None:
            server.accept()[0].close()

        other = threading.Thread(target=hang_up)
        other.start()
        with pytest.raises((OSError, TransferError)):
            transfer.fetch(place, "weights")
        other.join()
    with pytest.raises(OSError):
        transfer.fetch(place, "weights")
    assert pauses == [transfer.CAUSE_FIRST] * 2


def test_that_there_is_no_such_part_is_said_at_once(
    listener: Listener, pauses: List[float]
) -> None:
    listener.serve({"weights": (0, [])}.__getitem__)
    with pytest.raises(TransferError, match="there is no other"):
        transfer.fetch(listener.place, "other")
    assert pauses == []
