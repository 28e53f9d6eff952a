"""The TCP port of MXNet's kvstore scheduler: held until the scheduler takes it."""

import contextlib
import os
import selectors
import socket
import time
from typing import List, Optional

from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import ports

GUARD_SECONDS = 0.3
"""Seconds for which the scheduler's port is guarded at the least, where hosts share a network.

ZeroMQ calls again after 0.1 to 0.2 s (ZMQ_RECONNECT_IVL, zmq_setsockopt(3)).
"""

_ZMTP_SIGNATURE = b"\xff"
"""First byte that a ZeroMQ peer sends (ZMTP 3.0, section "Greeting")."""


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
        conflict: who has the port, if it was given and is taken.
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
        self.conflict = ""
        unshared = self._listener is None or address == "127.0.0.1"
        self.until = time.monotonic() + (0.0 if unshared else GUARD_SECONDS)
        if self._listener is None:
            if port:
                self._owner = ports.port_owner(port) or "a process that this one may not see"
            if given:
                self.conflict = (
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

            def on_greeting(mask: int) -> None:
                greeting = b""
                with contextlib.suppress(OSError):
                    greeting = caller.recv(64)
                if greeting.startswith(_ZMTP_SIGNATURE):
                    self._strangers.append(f"{address}:{port}")
                self._hang_up(caller)

            self._selector.register(caller, selectors.EVENT_READ, on_greeting)

    def _hang_up(self, caller: socket.socket) -> None:
        self._selector.unregister(caller)
        self._callers.remove(caller)
        caller.close()

    def close(self) -> None:
        """Release the port."""
        for caller in list(self._callers):
            self._hang_up(caller)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def release(self, log: Log) -> int:
        """Release the port, and return the one that the scheduler shall have.

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
