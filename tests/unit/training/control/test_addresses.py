"""Names and addresses: what resolves, what never can, and how a lookup tells."""

import os
import re
import selectors
import socket
import threading
from dataclasses import replace
from typing import Any, List

import pytest

from sagemaker_mxnet_toolkit.failure import NetworkError
from sagemaker_mxnet_toolkit.listening import listen
from sagemaker_mxnet_training.control import addresses
from sagemaker_mxnet_training.control.addresses import (
    InvalidNameError,
    NameLookup,
    scheduler_port,
)
from tests.support.fakes import FakeLog, job
from tests.support.jobs import free_port


def test_configured_addresses_take_precedence_over_name_resolution() -> None:
    assert addresses.resolve("a..b", {"a..b": "10.0.0.1"}) == "10.0.0.1"


@pytest.mark.parametrize("name", ["algo..1", "." + "a" * 64, "a" * 64])
def test_invalid_host_name_is_reported(name: str) -> None:
    """Python encodes names itself, and raises UnicodeError for these, which is not an OSError."""
    with pytest.raises(InvalidNameError, match="not a host name"):
        addresses.resolve(name, {})


def test_a_leader_whose_name_is_not_one_listens_all_the_same() -> None:
    here = job("algo-1")
    object.__setattr__(here, "current_host", "algo..1")
    assert addresses.listening_address(here) == "0.0.0.0"


def test_an_interface_that_does_not_exist_has_no_address() -> None:
    assert addresses.interface_address("") is None
    assert addresses.interface_address("nonesuch0") is None
    assert addresses.interface_address("\udce4") is None
    assert addresses.interface_address("lo") == "127.0.0.1"


def test_configured_address_takes_precedence_over_the_interface() -> None:
    """Two hosts on one machine's network: ``resourceconfig.json`` names eth0 for both."""
    known = {"algo-1": "127.0.0.5"}
    here = replace(job("algo-1", host_addresses=known), network_interface="lo")
    assert addresses.listening_address(here) == "127.0.0.5"
    elsewhere = {"algo-1": "192.0.2.1"}  # an address of a proxy, not of this machine
    here = replace(job("algo-1", host_addresses=elsewhere), network_interface="lo")
    assert addresses.listening_address(here) == "127.0.0.1"


class Answers:
    """A loop that waits for the answers of lookups."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.log = FakeLog()
        self.answers: List[NameLookup] = []

    def look_up(self, host: str, timeout: float = 60.0, **addresses: str) -> NameLookup:
        return NameLookup(host, addresses, timeout, self.selector, self.log, self.answers.append)

    def turn(self) -> None:
        for key, mask in self.selector.select(30.0):
            key.data(mask)


@pytest.fixture
def loop() -> Any:
    made = Answers()
    yield made
    assert not made.selector.get_map(), "a lookup left something behind"
    made.selector.close()


def test_closed_lookup_ends_its_thread(loop: Answers) -> None:
    before = set(threading.enumerate())
    lookup = loop.look_up("a.invalid", timeout=600.0)
    (thread,) = set(threading.enumerate()) - before
    lookup.close()
    thread.join(60.0)
    assert not thread.is_alive()


def test_a_lookup_answers_with_the_address(loop: Answers) -> None:
    lookup = loop.look_up("main", main="10.0.0.1")
    loop.turn()
    assert loop.answers == [lookup]
    assert (lookup.address, lookup.invalid) == ("10.0.0.1", False)
    assert not loop.log.lines


def test_lookup_of_an_invalid_name_fails_immediately(loop: Answers) -> None:
    lookup = loop.look_up("algo..1")
    loop.turn()
    assert loop.answers == [lookup]
    assert lookup.invalid
    assert lookup.obstacle.startswith("the name algo..1 does not resolve (not a host name")
    assert loop.log.lines == [lookup.obstacle]


def test_lookup_retries_and_logs_it_once(loop: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "LOOKUP_PERIOD", 0.01)
    attempts: List[str] = []
    genuine = socket.getaddrinfo

    def flaky(host: str, *rest: Any) -> Any:
        attempts.append(host)
        if len(attempts) < 4:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return genuine("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", flaky)
    lookup = loop.look_up("algo-1")
    loop.turn()
    assert lookup.address == "127.0.0.1"
    assert len(attempts) == 4
    assert len(loop.log.lines) == 1
    assert "Temporary failure in name resolution" in loop.log.lines[0]
    assert loop.log.lines[0].endswith("retrying for 60 s")


def test_lookup_fails_silently_in_the_end(loop: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller has its own deadline, and asks for the obstacle."""

    def never(*arguments: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    lookup = loop.look_up("algo-1", timeout=0.0)
    loop.turn()
    assert not loop.answers
    assert "Name or service not known" in lookup.obstacle


def test_a_lookup_can_be_closed_before_its_answer(loop: Answers) -> None:
    loop.look_up("main", main="10.0.0.1").close()
    assert not loop.answers


def test_free_scheduler_port_is_the_one_asked_for() -> None:
    port = free_port()
    for given in (True, False):
        assert scheduler_port("127.0.0.1", port, given, FakeLog()) == port


def test_taken_scheduler_port_names_its_owner() -> None:
    log = FakeLog()
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        taken = f"port {port}.* is taken by process {os.getpid()}, "
        with pytest.raises(NetworkError, match=taken):
            scheduler_port("127.0.0.1", port, True, log)
        assert not log.lines
        other = scheduler_port("127.0.0.1", port, False, log)
    assert other != port
    assert re.match(rf"{taken}.*; using port {other} instead", log.lines[0])


def test_scheduler_ports_are_below_the_ephemeral_range() -> None:
    assert 10000 <= scheduler_port("127.0.0.1", 0, False, FakeLog()) < 32768
