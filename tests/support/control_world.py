"""One end of the control channel beside the other, over real loopback sockets, in one loop."""

import selectors
import socket
import time
from dataclasses import replace
from typing import Any, Callable, Dict, List, Tuple

from sagemaker_mxnet_toolkit.listening import listen
from sagemaker_mxnet_training.cluster.events import Idle, Note
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control import handshake, wire
from sagemaker_mxnet_training.control.leader_connection import LeaderConnection
from sagemaker_mxnet_training.control.link import Link
from sagemaker_mxnet_training.control.members import Acceptor, MemberConnections
from tests.support.fakes import FakeLog, job

HOSTS = 4


def hello(host: str = "algo-3") -> bytes:
    """Return the frame that a follower sends first."""
    return wire.encode(handshake.hello(host))


def hung_up(sock: socket.socket) -> bool:
    """Return whether the peer has closed a non-blocking socket."""
    try:
        return sock.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Clock:
    """A clock that also moves when a test says so."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped


class ControlWorld:
    """A leader and its followers in one loop, with the callables that were called.

    Each call is a tuple: the name of the callable, without ``on_``, and its arguments.
    """

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.ends: Dict[str, Any] = {}
        self.clocks: Dict[str, Clock] = {}
        self.logs: Dict[str, FakeLog] = {}
        self.calls: Dict[str, List[Tuple[Any, ...]]] = {}
        self.frozen: List[str] = []
        self.reactions: Dict[str, Callable[..., None]] = {}
        self.address = ("127.0.0.1", 0)
        self.most_files = 0

    def job(self, host: str, timeout: float = 60.0, **changes: Any) -> Job:
        """Return the job as a host sees it."""
        settings = {
            "host_addresses": {"algo-1": self.address[0], host: "127.0.0.1"},
            "control_port": self.address[1],
            "peer_timeout": timeout,
        }
        for name in ("job_key", "control_fd"):
            if name in changes:
                settings[name] = changes.pop(name)
        return replace(job(host, HOSTS, **settings), **changes)

    def _arguments(self, label: str, job: Job, names: Tuple[str, ...]) -> Tuple[Any, ...]:
        self.clocks[label], self.logs[label] = Clock(), FakeLog()
        calls = self.calls.setdefault(label, [])

        def noting(name: str) -> Callable[..., None]:
            def note(*arguments: Any) -> None:
                calls.append((name, *arguments))
                self.reactions.get(f"{label} {name}", lambda *rest: None)(*arguments)

            return note

        callables = [noting(name) for name in names]
        return (job, self.logs[label], self.selector, *callables, self.clocks[label])

    def leader(self, timeout: float = 60.0, **changes: Any) -> MemberConnections:
        listener = listen("127.0.0.1", self.address[1])
        self.address = listener.getsockname()
        job = self.job("algo-1", timeout, control_fd=listener.detach(), **changes)
        names = ("joined", "lost", "report", "disagreement")
        self.ends["algo-1"] = MemberConnections(*self._arguments("algo-1", job, names))
        return self.ends["algo-1"]

    def follower(
        self, host: str, label: str = "", timeout: float = 60.0, **changes: Any
    ) -> LeaderConnection:
        label = label or host
        names = ("joined", "order", "lost", "refused")
        arguments = self._arguments(label, self.job(host, timeout, **changes), names)
        self.ends[label] = LeaderConnection(*arguments)
        return self.ends[label]

    def turn(self) -> None:
        for name, end in list(self.ends.items()):
            if name not in self.frozen:
                end.tick(self.clocks[name]())
        self.most_files = max(self.most_files, len(self.selector.get_map()))
        frozen = [self.ends[name] for name in self.frozen]
        if self.selector.get_map():
            for key, mask in self.selector.select(0.01):
                registered = self.selector.get_map().get(key.fd) is key
                if registered and self._owner(key.data) not in frozen:
                    key.data(mask)

    def _owner(self, ready: Any) -> Any:
        """Return the end of the channel that a callable in the selector belongs to."""
        owner = getattr(ready, "__self__", None)
        if isinstance(owner, Link):
            return owner._on_end.__self__  # type: ignore[attr-defined]
        return owner._admit.__self__ if isinstance(owner, Acceptor) else owner

    def until(self, done: Callable[[], Any], bound: float = 60.0) -> None:
        limit = time.monotonic() + bound
        while not done():
            assert time.monotonic() < limit, f"never came: {self.calls}"
            self.turn()

    def called(self, label: str, name: str) -> List[Tuple[Any, ...]]:
        """Return the arguments of all calls of one callable so far."""
        return [call[1:] for call in self.calls[label] if call[0] == name]

    def until_called(self, label: str, name: str, times: int = 1) -> Tuple[Any, ...]:
        """Wait for a call; return its arguments."""
        self.until(lambda: len(self.called(label, name)) >= times)
        return self.called(label, name)[times - 1]

    def strangers(self) -> List[str]:
        """Return why connections were rejected, as the leader logged it."""
        lines = self.logs["algo-1"].lines
        prefix = "rejected connection from "
        return [line.split(": ", 1)[1] for line in lines if line.startswith(prefix)]

    def skip(self, seconds: float, names: Any = None, step: float = 0.5) -> None:
        """Let time pass, in steps small enough not to look like a stopped process."""
        for _ in range(int(seconds / step)):
            for name in names or self.clocks:
                self.clocks[name].skipped += step
            self.turn()
            self.turn()

    def join(self, *hosts: str, address: Any = None) -> None:
        """Let hosts join, until both sides know of it."""
        own, self.address = self.address, address or self.address
        for host in hosts:
            self.follower(host)
        for host in hosts:
            self.until_called(host, "joined")
            self.until(
                lambda host=host: any(call[0] == host for call in self.called("algo-1", "joined"))
            )
        self.address = own

    def prove_alive(self, host: str, number: int) -> None:
        """Let a message each way arrive, exactly once."""
        report, order = Idle(host, float(number)), Note(f"proof {number}")
        self.ends[host].send(report)
        self.ends["algo-1"].send(order, host)
        self.until(lambda: self.called("algo-1", "report").count((host, report)) == 1)
        self.until(lambda: self.called(host, "order").count((order,)) == 1)

    def close(self) -> None:
        """Close both ends everywhere, and check that they leave nothing behind."""
        for end in self.ends.values():
            end.close()
        left = len(self.selector.get_map())
        self.selector.close()
        assert not left, "a closed end left a socket behind"
