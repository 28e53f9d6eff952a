"""Names, addresses and ports: what the hosts of a job need to find each other.

IPv4 only, as ps-lite in MXNet 1.9.1 is.
"""

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass
from typing import List, Mapping, Optional

from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import ports
from sagemaker_mxnet_training.config.job import Job

_SIOCGIFADDR = 0x8915
GUARD_SECONDS = 0.3
"""Seconds for which the scheduler's port is guarded at the least, where hosts share a network.

ZeroMQ calls again after 0.1 to 0.2 s (ZMQ_RECONNECT_IVL, zmq_setsockopt(3)).
"""

_ZMTP_SIGNATURE = b"\xff"
"""First byte that a ZeroMQ peer sends (ZMTP 3.0, section "Greeting")."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the kvstore meets.

    Attributes:
        address: IP address of the scheduler; ps-lite cannot bind a name.
        port: TCP port of the scheduler.
        own_address: this host's IP address, as the scheduler's host reaches it.
        servers_per_host: how many servers each host runs. The leader says it, since the scheduler
            waits for all of them.
    """

    address: str
    port: int
    own_address: str
    servers_per_host: int = 1


def resolve(host: str, addresses: Mapping[str, str]) -> str:
    """Return a host's IPv4 address, from ``addresses`` or else from DNS.

    Raises:
        OSError: the name does not resolve.
    """
    known = addresses.get(host)
    if known is not None:
        return known
    return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])


def reachability(host: str, job: Job) -> str:
    """Say, for a host that is missing, whether at least its name resolves."""
    try:
        return f"{host} resolves to {resolve(host, job.settings.host_addresses)} but never called"
    except OSError as error:
        return f"the name {host} does not resolve: {error}"


def interface_address(name: str) -> Optional[str]:
    """Return the IPv4 address of a network interface, or ``None`` if there is no such thing."""
    if not name:
        return None
    request = struct.pack("256s", name.encode()[:15])
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


def free_port(address: str) -> int:
    """Return a TCP port that nothing uses on an address.

    It lies below the range from which Linux takes the ports of outgoing connections (32768), so
    that none of those can take it before the scheduler does.
    """
    for _ in range(100):
        port = 10000 + int.from_bytes(os.urandom(4), "big") % 22768
        probe = _bind(address, port)
        if probe is not None:
            probe.close()
            return port
    raise NetworkError(f"no free TCP port was found on {address} between 10000 and 32767")


def _bind(address: str, port: int) -> Optional[socket.socket]:
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((address, port))
        probe.listen(16)
    except OSError:
        probe.close()
        return None
    return probe


class PortGuard:
    """Holds the scheduler's port until the scheduler takes it, and notices who calls too early.

    ps-lite knows no jobs: a process that an earlier job left behind goes on trying to reach its
    scheduler, and would be counted as one of the new job's. Nobody of this job calls before its
    scheduler is started, so whoever does is such a process, and the scheduler goes elsewhere.

    Args:
        address: where the scheduler will listen.
        port: the port it should have; 0 stands for any free one.
        given: whether somebody asked for exactly this port.
        selector: the supervisor's.

    Attributes:
        trouble: who has the port, if it was given and is taken.
        until: when strangers have had the time to show themselves (monotonic, seconds).
    """

    def __init__(
        self, address: str, port: int, given: bool, selector: selectors.BaseSelector
    ) -> None:
        self._address = address
        self._port = port
        self._given = given
        self._selector = selector
        self._strangers: List[str] = []
        self._callers: List[socket.socket] = []
        self._listener = _bind(address, port) if port else None
        self._owner = ""
        self.trouble = ""
        alone = self._listener is None or address == "127.0.0.1"
        self.until = time.monotonic() + (0.0 if alone else GUARD_SECONDS)
        if self._listener is None:
            if port:
                self._owner = ports.port_owner(port) or "a process that this one may not see"
            if given:
                self.trouble = (
                    f"port {port} on {address} is taken by {self._owner}; end that process, or "
                    "give the job another port (hyperparameter _ps_port)"
                )
            return
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._on_call)

    def _on_call(self, mask: int) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            caller, (address, port) = self._listener.accept()
            if len(self._callers) >= 16:
                caller.close()
                return
            caller.setblocking(False)
            self._callers.append(caller)

            def on_word(mask: int) -> None:
                word = b""
                with contextlib.suppress(OSError):
                    word = caller.recv(64)
                if word.startswith(_ZMTP_SIGNATURE):
                    self._strangers.append(f"{address}:{port}")
                self._hang_up(caller)

            self._selector.register(caller, selectors.EVENT_READ, on_word)

    def _hang_up(self, caller: socket.socket) -> None:
        self._selector.unregister(caller)
        self._callers.remove(caller)
        caller.close()

    def close(self) -> None:
        """Let go of the port."""
        for caller in list(self._callers):
            self._hang_up(caller)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def release(self, log: Log) -> int:
        """Let go of the port, and return the one that the scheduler shall have.

        Raises:
            NetworkError: a port was given and a stranger calls on it.
        """
        free = self._listener is not None
        self.close()
        if free and not self._strangers:
            return self._port
        if not self._port:
            return free_port(self._address)
        why = f"port {self._port} is taken by {self._owner}"
        if self._strangers:
            why = (
                f"something at {self._strangers[-1]} calls on port {self._port} as if a kvstore "
                "scheduler were there: it is probably left over from an earlier job"
            )
            if self._given:
                raise NetworkError(
                    f"{why}; end it, or give the job another port (hyperparameter _ps_port)"
                )
        port = free_port(self._address)
        log.warning("scheduler", f"{why}; using port {port} instead")
        return port
