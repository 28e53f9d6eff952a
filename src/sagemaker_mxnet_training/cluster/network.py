"""Names, addresses and ports: what the hosts of a job need to find each other.

IPv4 only, as ps-lite in MXNet 1.9.1 is.
"""

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import threading
import time
from typing import Callable, Mapping, Optional

from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import ports
from sagemaker_mxnet_training.config.job import Job

LOOKUP_PERIOD = 0.5
"""Seconds between two attempts to resolve a name."""

_SIOCGIFADDR = 0x8915


class InvalidNameError(OSError):
    """A text that no name server can ever resolve, since it is not a host name."""


def resolve(host: str, addresses: Mapping[str, str]) -> str:
    """Return a host's IPv4 address, from ``addresses`` or else from DNS.

    Raises:
        InvalidNameError: it is not a host name, as ``a..b`` is not.
        OSError: the name does not resolve.
    """
    known = addresses.get(host)
    if known is not None:
        return known
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except ValueError as error:  # such as UnicodeError, for an empty label
        raise InvalidNameError(f"not a host name: {error}") from None
    return str(found[0][4][0])


class NameLookup:
    """Looks a host's name up, again and again until it resolves, without blocking the caller.

    Args:
        host: the name.
        addresses: host name to IP address, as ``Settings.host_addresses``.
        timeout: seconds after which no further attempt is made.
        selector: the caller's selector; ``close`` removes what is registered here.
        log: told when the first attempt fails.
        on_answer: called once, from the selector, when ``address`` or ``invalid`` is known.

    Attributes:
        address: the IPv4 address; empty until it is known.
        invalid: whether the name can never resolve.
        obstacle: why there is no address, so far.
    """

    def __init__(
        self,
        host: str,
        addresses: Mapping[str, str],
        timeout: float,
        selector: selectors.BaseSelector,
        log: Log,
        on_answer: "Callable[[NameLookup], None]",
    ) -> None:
        self.address = ""
        self.invalid = False
        self.obstacle = f"the name {host} has not been resolved yet"
        self._host = host
        self._addresses = addresses
        self._timeout = timeout
        self._selector = selector
        self._log = log
        self._on_answer = on_answer
        self._answered, answer = socket.socketpair()
        selector.register(self._answered, selectors.EVENT_READ, self._on_ready)
        # getaddrinfo(3) can block for longer than the other hosts wait for a sign of life.
        threading.Thread(target=self._look_up, args=(answer,), name="lookup", daemon=True).start()

    def close(self) -> None:
        """Stop listening to the answer; the thread ends by itself."""
        if self._answered.fileno() >= 0:
            self._selector.unregister(self._answered)
            self._answered.close()

    def _look_up(self, answer: socket.socket) -> None:
        with answer:
            # Most names resolve at once, and need not wait 5 ms for the import.
            with contextlib.suppress(OSError):
                self.address = self._attempt()
            if not (self.address or self.invalid):
                self._keep_trying()

    def _keep_trying(self) -> None:
        from retrying import Retrying  # noqa: PLC0415

        time.sleep(LOOKUP_PERIOD)
        retrying = Retrying(
            stop_max_delay=int(self._timeout * 1000),
            wait_fixed=int(LOOKUP_PERIOD * 1000),
            retry_on_exception=lambda error: (
                isinstance(error, OSError) and not isinstance(error, InvalidNameError)
            ),
        )
        with contextlib.suppress(OSError):  # told in ``obstacle``
            self.address = retrying.call(self._attempt)

    def _attempt(self) -> str:
        try:
            return resolve(self._host, self._addresses)
        except OSError as error:
            self.invalid = isinstance(error, InvalidNameError)
            again = "" if self.invalid else f"; trying again for {self._timeout:g} s"
            obstacle = f"the name {self._host} does not resolve ({error})"
            if obstacle != self.obstacle:
                self._log("entrypoint", f"{obstacle}{again}")
            self.obstacle = obstacle
            raise

    def _on_ready(self, mask: int) -> None:
        """Read the end of the thread: it closes its side of the pair."""
        self.close()
        if self.address or self.invalid:
            self._on_answer(self)


def interface_address(name: str) -> Optional[str]:
    """Return the IPv4 address of a network interface, or ``None`` if there is no such thing."""
    if not name:
        return None
    request = struct.pack("256s", os.fsencode(name)[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def listening_address(job: Job) -> str:
    """Return the address on which the leader listens: no more than the others need.

    That is the address of the job's network interface where it exists, or else the one that the
    leader's name has. Where that is a loopback address although the other hosts are elsewhere
    (Debian writes ``127.0.1.1 name`` into ``/etc/hosts``), it is every address.
    """
    address = interface_address(job.network_interface)
    if address is not None:
        return address
    known = job.settings.host_addresses
    try:
        address = resolve(job.current_host, known)
    except OSError:
        return "0.0.0.0"
    if address.startswith("127.") and job.current_host not in known:
        return "0.0.0.0"
    return address


def listen(address: str, port: int, fd: Optional[int]) -> socket.socket:
    """Return a listening socket for the control channel.

    Args:
        address: IPv4 address.
        port: TCP port.
        fd: an inherited socket that listens already, if there is one.

    Raises:
        NetworkError: the port is taken (its owner is named) or not permitted.
    """
    if fd is not None:
        return socket.socket(fileno=fd)
    return ports.listen(address, port)
