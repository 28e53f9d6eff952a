"""Host names and addresses, and the TCP port of the kvstore's scheduler.

Only IPv4 is supported, as in ps-lite (MXNet 1.9.1).
"""

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import threading
from typing import Callable, Mapping, Optional

from sagemaker_mxnet_toolkit.failure import NetworkError
from sagemaker_mxnet_toolkit.listening import INVISIBLE, bind, port_owner
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.config.job import Job

LOOKUP_PERIOD = 0.5
"""Seconds between two attempts to resolve a name."""

_SIOCGIFADDR = 0x8915


class InvalidNameError(OSError):
    """A string that is not a host name, so it can never resolve."""


def resolve(host: str, addresses: Mapping[str, str]) -> str:
    """Return a host's IPv4 address, from ``addresses`` or from DNS.

    Raises:
        InvalidNameError: it is not a host name, such as ``a..b``.
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
    """Resolves a host's name in a thread, and retries until it succeeds.

    Args:
        host: the name.
        addresses: host name to IP address, as ``Settings.host_addresses``.
        timeout: seconds after which it stops retrying.
        selector: the caller's selector.
        log: logs the first failure.
        on_answer: called once, from the selector, when ``address`` or ``invalid`` is set.

    Attributes:
        address: the IPv4 address; empty until it is known.
        invalid: whether the name can never resolve.
        obstacle: why there is no address yet.
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
        # getaddrinfo(3) can block for longer than peer_timeout.
        threading.Thread(target=self._look_up, args=(answer,), name="lookup", daemon=True).start()

    def close(self) -> None:
        """Ignore the result; the thread ends instead of retrying."""
        if self._answered.fileno() >= 0:
            self._selector.unregister(self._answered)
            self._answered.close()

    def _look_up(self, answer: socket.socket) -> None:
        from retrying import Retrying  # doctor reports it as missing, and imports this module

        retrying = Retrying(
            stop_max_delay=int(self._timeout * 1000),
            wait_fixed=int(LOOKUP_PERIOD * 1000),
            retry_on_exception=lambda error: (
                self._answered.fileno() >= 0  # not closed
                and isinstance(error, OSError)
                and not isinstance(error, InvalidNameError)
            ),
        )
        with answer, contextlib.suppress(OSError):  # the cause is in ``obstacle``
            self.address = retrying.call(self._attempt)

    def _attempt(self) -> str:
        try:
            return resolve(self._host, self._addresses)
        except OSError as error:
            self.invalid = isinstance(error, InvalidNameError)
            again = "" if self.invalid else f"; retrying for {self._timeout:g} s"
            obstacle = f"the name {self._host} does not resolve ({error})"
            if obstacle != self.obstacle:
                self._log("entrypoint", f"{obstacle}{again}")
            self.obstacle = obstacle
            raise

    def _on_ready(self, mask: int) -> None:
        """Handle the end of the thread, which closes its end of the socket pair."""
        self.close()
        if self.address or self.invalid:
            self._on_answer(self)


def interface_address(name: str) -> Optional[str]:
    """Return the IPv4 address of a network interface, or ``None``."""
    if not name:
        return None
    request = struct.pack("256s", os.fsencode(name)[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def chosen_address(job: Job) -> Optional[str]:
    """Return this host's address according to the job's settings, or ``None``.

    An address in ``host_addresses`` takes precedence over the network interface, which
    ``resourceconfig.json`` always names. It is ignored if it does not belong to this machine, but
    for example to a proxy.
    """
    configured = job.settings.host_addresses.get(job.current_host)
    if configured is not None:
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with probe, contextlib.suppress(OSError):
            probe.bind((configured, 0))
            return configured
    return interface_address(job.network_interface)


def listening_address(job: Job) -> str:
    """Return the address on which the leader listens.

    This is the configured address, or else that of the leader's name. If the name has a loopback
    address (Debian writes ``127.0.1.1 name`` to ``/etc/hosts``), it is ``0.0.0.0``.
    """
    address = chosen_address(job)
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


def scheduler_port(address: str, port: int, explicit: bool, log: Log) -> int:
    """Return the TCP port for the kvstore's scheduler.

    Args:
        address: the address of the scheduler.
        port: the preferred port; 0 for any free one.
        explicit: whether the port was set explicitly.
        log: logs that another port is used.

    Raises:
        NetworkError: the port was set explicitly and is taken, or no port is free.
    """
    if port == 0:
        return _free_port(address)
    if _is_free(address, port):
        return port
    owner = port_owner(port) or INVISIBLE
    if explicit:
        raise NetworkError(
            f"port {port} on {address} is taken by {owner}; stop that process, or set another port "
            "(hyperparameter _ps_port)"
        )
    other = _free_port(address)
    log.warning("scheduler", f"port {port} is taken by {owner}; using port {other} instead")
    return other


def _free_port(address: str) -> int:
    """Return a free TCP port.

    It is below Linux's range for outgoing connections (from 32768), so that none of these can take
    it before the scheduler does.
    """
    for _ in range(100):
        port = 10000 + int.from_bytes(os.urandom(4), "big") % 22768
        if _is_free(address, port):
            return port
    raise NetworkError(f"cannot find a free TCP port on {address} between 10000 and 32767")


def _is_free(address: str, port: int) -> bool:
    try:
        bind(address, port).close()
    except OSError:
        return False
    return True
