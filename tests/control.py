"""One end of the control channel beside the other, over real loopback sockets, in one loop."""

import selectors
import socket
import time
from typing import Any, Callable, Dict, List

from sagemaker_mxnet_training.cluster import frames
from sagemaker_mxnet_training.cluster.channel import PeerJoined, PeerMessage
from sagemaker_mxnet_training.cluster.follower_channel import FollowerChannel
from sagemaker_mxnet_training.cluster.frames import derive_key
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.leader_channel import LeaderChannel
from sagemaker_mxnet_training.cluster.ports import listen

HOSTS = tuple(f"algo-{number}" for number in range(1, 5))


def keys(**material: Any) -> JobKeys:
    """Return the keys of a job that differs from others in the material given."""
    return JobKeys(derive_key(material), {})


KEYS = keys(job="one")


def opening(host: str = "algo-3") -> bytes:
    """Return the frame that a follower sends first."""
    return b"".join(frames.frame(frames.Opening(host).to_bytes()))


def hung_up(sock: socket.socket) -> bool:
    """Tell whether the peer has closed a non-blocking socket."""
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
    """A leader and its followers in one loop, with what each of them was told."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.channels: Dict[str, Any] = {}
        self.clocks: Dict[str, Clock] = {}
        self.events: Dict[str, List[Any]] = {}
        self.frozen: List[str] = []
        self.address = ("127.0.0.1", 0)
        self.most_files = 0

    def _enter(self, name: str, post: Callable[[Any], None]) -> Callable[[Any], None]:
        self.clocks[name] = Clock()
        events = self.events.setdefault(name, [])

        def both(event: Any) -> None:
            events.append(event)
            post(event)

        return both

    def leader(
        self, hosts=HOSTS, keys=KEYS, timeout=60.0, post=lambda event: None, rejoin=False
    ) -> LeaderChannel:
        listener = listen("127.0.0.1", self.address[1])
        self.address = listener.getsockname()
        post = self._enter("algo-1", post)
        self.channels["algo-1"] = LeaderChannel(
            listener,
            keys,
            "algo-1",
            hosts,
            timeout,
            self.selector,
            post,
            self.clocks["algo-1"],
            rejoin,
        )
        return self.channels["algo-1"]

    def follower(
        self,
        me,
        keys=KEYS,
        timeout=60.0,
        label="",
        leader="algo-1",
        address=None,
        post=lambda event: None,
    ) -> FollowerChannel:
        label = label or me
        post = self._enter(label, post)
        self.channels[label] = FollowerChannel(
            me,
            leader,
            address or self.address,
            keys,
            timeout,
            self.selector,
            post,
            self.clocks[label],
        )
        return self.channels[label]

    def turn(self) -> None:
        for name, channel in list(self.channels.items()):
            if name not in self.frozen:
                channel.tick(self.clocks[name]())
        self.most_files = max(self.most_files, len(self.selector.get_map()))
        if self.selector.get_map():
            for key, mask in self.selector.select(0.01):
                owner = getattr(getattr(key.data, "__self__", None), "_on_end", key.data)
                if getattr(owner, "__self__", None) not in [
                    self.channels[name] for name in self.frozen
                ]:
                    key.data(mask)

    def until(self, done: Callable[[], Any], bound: float = 60.0) -> None:
        limit = time.monotonic() + bound
        while not done():
            assert time.monotonic() < limit, f"never came: {self.events}"
            self.turn()

    def told(self, name: str, kind: type) -> List[Any]:
        return [event for event in self.events[name] if isinstance(event, kind)]

    def skip(self, seconds: float, names=None, step: float = 0.5) -> None:
        """Let time pass, in steps small enough not to look like a stopped process."""
        for _ in range(int(seconds / step)):
            for name in names or self.clocks:
                self.clocks[name].skipped += step
            self.turn()
            self.turn()

    def join(self, *hosts: str, address=None) -> None:
        """Let hosts join, until both sides know of it."""
        for host in hosts:
            self.follower(host, address=address)
        for host in hosts:
            self.until(lambda host=host: self.told(host, PeerJoined))
            self.until(
                lambda host=host: any(e.host == host for e in self.told("algo-1", PeerJoined))
            )

    def prove_alive(self, host: str, number: int) -> None:
        """A message each way arrives, exactly once."""
        self.channels[host].send({"proof": number})
        self.channels["algo-1"].send(host, {"proof": number})
        message = {"proof": number}
        self.until(lambda: self.told("algo-1", PeerMessage).count(PeerMessage(host, message)) == 1)
        self.until(lambda: self.told(host, PeerMessage).count(PeerMessage("algo-1", message)) == 1)

    def close(self) -> None:
        """Close all channels, and make sure that they leave nothing behind."""
        for channel in self.channels.values():
            channel.close()
        left = len(self.selector.get_map())
        self.selector.close()
        assert not left, "a closed channel left a socket behind"
