"""How the hosts of a job agree: on when to start, when to leave and how it ended.

The first host leads. Hosts report what happens to them; the leader feeds that to the one decision
function (``ending.advance``) and gives orders. A host alone is its own leader and needs no network.
Orders reach the supervisor through the methods of ``Orders``.
"""

import contextlib
import enum
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Protocol, Set, Tuple

from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.failure import Failure, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import control, network
from sagemaker_mxnet_training.cluster.ending import (
    Cluster,
    Drained,
    Event,
    Failed,
    Finished,
    Phase,
    Ready,
    StopRequested,
    Tick,
    advance,
)
from sagemaker_mxnet_training.cluster.ending import Stop as Stop  # noqa: PLC0414
from sagemaker_mxnet_training.cluster.ending import Verdict as Verdict  # noqa: PLC0414
from sagemaker_mxnet_training.cluster.network import Rendezvous
from sagemaker_mxnet_training.config.job import Job

VOICE = 15.0
"""Seconds between two lines about the same wait."""

TELL = 3.0
"""Seconds that a host which must end goes on trying to tell the others why."""


class Step(enum.Enum):
    """What a host is doing, as it tells the leader for its log."""

    FETCH = "fetching the code"
    INSTALL = "installing requirements"
    READY = "ready"
    TRAINING = "training"
    STEPPED = "training, past its first step"
    FINISHED = "finished"


class Orders(Protocol):
    """What a coordinator asks of the supervisor. Each is given once at the most."""

    def start(self, rendezvous: Optional[Rendezvous]) -> None:
        """Start the kvstore and the worker."""

    def stepped(self) -> None:
        """Take note that the first step of training is done, on whichever host."""

    def stop(self, stop: Stop) -> None:
        """Ask the worker to stop."""

    def drain(self) -> None:
        """All workers have finished: see the rest of the processes out."""

    def end(self, verdict: Verdict) -> None:
        """Make an end of whatever still runs, and report this verdict."""


class Coordinator(Protocol):
    """A host's way to tell the others. Times are this host's monotonic clock, in seconds."""

    def report_step(self, step: Step) -> None:
        """Say what this host is doing. ``READY``, ``STEPPED`` and ``FINISHED`` move the job on."""

    def report_drained(self) -> None:
        """Say that no process is left on this host."""

    def report_failure(self, failure: Failure, when: float) -> None:
        """Say that something failed here."""

    def report_stop(self, stop: Stop, when: float) -> None:
        """Say that this host was asked to stop."""

    def report_idle(self, idle: float) -> None:
        """Say for how many seconds this host's worker has made no progress."""

    def give_up(self) -> None:
        """Wait for no other host any more: end alone, with ``Outcome.STOP``."""

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again."""

    def settled(self, now: float) -> bool:
        """Return whether everybody who must know the verdict knows it, or cannot be told."""

    def close(self) -> None:
        """Leave, with a goodbye."""


def coordinator(
    job: Job, log: Log, orders: Orders, selector: selectors.BaseSelector
) -> "Coordinator":
    """Return this host's coordinator: the leader's on the first host, a follower's elsewhere.

    Raises:
        NetworkError: the leader's port cannot be listened on.
    """
    if job.is_leader:
        return _Leading(job, log, orders, selector)
    return _Following(job, log, orders, selector)


def job_key(job: Job) -> bytes:
    """Return the key by which the hosts of a job know each other.

    It is derived from what all of them are given alike and a stranger is not: the job's name and
    ARN, its hyperparameters, and ``SAGEMAKER_MXNET_JOB_KEY`` where somebody set it.
    """
    return control.derive_key(
        {
            "job": job.job_name,
            "arn": job.environ.get("TRAINING_JOB_ARN", ""),
            "hosts": list(job.hosts),
            "hyperparameters": dict(job.hyperparameters),
            "framework": dict(job.framework_parameters),
            "key": job.settings.job_key,
        }
    )


def lost(host: str, reason: str) -> Failure:
    """Return the failure that a host's disappearance is."""
    return Failure(host, Role.ENTRYPOINT, f"lost: {reason}")


@dataclass
class _Peer:
    """What the leader knows of another host, for its log and for the stall rule."""

    step: Optional[Step] = None
    idle: float = 0.0


class _Leading:
    """The first host's coordinator: keeps the cluster's state, and gives orders to all."""

    def __init__(
        self, job: Job, log: Log, orders: Orders, selector: selectors.BaseSelector
    ) -> None:
        """Open the job's door: followers can join from now on. See ``coordinator``."""
        self._job = job
        self._log = log
        self._orders = orders
        self._cluster = Cluster.of(job.hosts)
        self._peers: Dict[str, _Peer] = {host: _Peer() for host in job.hosts}
        self._joined: Set[str] = {job.current_host}
        self._opened = time.monotonic()
        self._voiced = self._opened
        self._start_at: Optional[float] = None
        self._stepped = False
        self._ended: Optional[float] = None
        self._address = "127.0.0.1"
        self._names: Dict[str, str] = {}
        self._guard: Optional[network.PortGuard] = None
        self._channel: Optional[control.Leader] = None
        if len(job.hosts) > 1:
            self._address = network.listening_address(job)
            listener = network.listen(
                self._address, job.settings.control_port, job.settings.control_fd
            )
            self._channel = control.Leader(
                listener,
                job_key(job),
                job.current_host,
                job.hosts,
                job.settings.peer_timeout,
                selector,
                self._on_peer,
            )
        if job.parameter_server:
            self._guard = network.PortGuard(
                self._address, job.settings.ps_port, job.settings.ps_port_given, selector
            )
            if self._guard.trouble:
                # Said here, not raised: the other hosts must hear of it too.
                failure = Failure(job.current_host, Role.SCHEDULER, self._guard.trouble)
                self.report_failure(failure, self._opened)

    # What this host reports.

    def report_step(self, step: Step) -> None:
        self._step(self._job.current_host, step)

    def report_drained(self) -> None:
        self._feed(Drained(self._job.current_host))

    def report_failure(self, failure: Failure, when: float) -> None:
        self._feed(Failed(failure, when))

    def report_stop(self, stop: Stop, when: float) -> None:
        self._feed(StopRequested(stop, when))

    def report_idle(self, idle: float) -> None:
        self._peers[self._job.current_host].idle = idle

    def give_up(self) -> None:
        self._ended = time.monotonic() - TELL
        self._orders.end(Verdict(Outcome.STOP))

    # What the others report.

    def _on_peer(self, event: Any) -> None:
        if isinstance(event, control.PeerJoined):
            self._on_joined(event)
        elif isinstance(event, control.PeerMessage):
            try:
                self._on_message(event.host, event.body)
            except (KeyError, TypeError, ValueError) as error:
                self._log.warning("entrypoint", f"{event.host} said what makes no sense: {error!r}")
        elif isinstance(event, control.PeerLeft):
            self._joined.discard(event.host)
        elif isinstance(event, control.PeerLost):
            self._joined.discard(event.host)
            if self._cluster.phase is Phase.ENDED:
                return
            self._log.warning("entrypoint", f"lost {event.host}: {event.reason}")
            self._feed(Failed(lost(event.host, event.reason), time.monotonic()))
            if self._cluster.stopping:
                self._excuse(event.host)
        elif isinstance(event, control.Stranger):
            self._log.warning("entrypoint", f"turned {event.address} away: {event.reason}")

    def _on_joined(self, event: control.PeerJoined) -> None:
        self._joined.add(event.host)
        self._names[event.host] = event.address
        if self._address in ("0.0.0.0", ""):
            # The address under which the others reach us is the one that works.
            self._address = event.local_address
        count = f"{len(self._joined)} of {len(self._job.hosts)}"
        self._log("entrypoint", f"{event.host} joined from {event.address} ({count})")
        if self._cluster.verdict is not None:
            self._send(event.host, _end_message(self._cluster.verdict))
        elif self._cluster.stopping and self._cluster.stop is not None:
            self._send(event.host, _stop_message(self._cluster.stop[1]))

    def _on_message(self, host: str, body: Mapping[str, Any]) -> None:
        kind = body["type"]
        when = time.monotonic() - max(0.0, float(body.get("age", 0.0)))
        if kind == "step":
            self._step(host, Step[str(body["step"])])
        elif kind == "idle":
            self._peers[host].idle = float(body["idle"])
        elif kind == "drained":
            self._feed(Drained(host))
        elif kind == "failed":
            self._feed(Failed(Failure.from_json(body["failure"]), when))
        elif kind == "stop":
            self._feed(StopRequested(Stop(host, int(body["signal"])), when))
        else:
            raise ValueError(f"no message is of type {kind!r}")

    def _step(self, host: str, step: Step) -> None:
        self._peers[host].step = step
        if step is Step.READY:
            self._feed(Ready(host))
        elif step is Step.STEPPED and not self._stepped:
            self._stepped = True
            self._broadcast({"type": "stepped"})
            self._orders.stepped()
        elif step is Step.FINISHED:
            self._feed(Finished(host))
            left = sorted(self._cluster.hosts - self._cluster.finished)
            if left and self._cluster.phase is Phase.TRAINING:
                self._log("entrypoint", f"{host} finished; still training: {_names(left)}")

    # What follows from it.

    def _feed(self, event: Event) -> None:
        before = self._cluster
        after = self._cluster = advance(before, event, time.monotonic())
        if after.stopping and not before.stopping and after.stop is not None:
            self._broadcast(_stop_message(after.stop[1]))
            self._orders.stop(after.stop[1])
            for host in set(self._job.hosts) - self._joined:
                self._excuse(host)
            if self._cluster is not after:
                return
        if after.phase is before.phase:
            return
        if after.phase is Phase.TRAINING and not after.stopping:
            self._start_at = self._guard.until if self._guard is not None else 0.0
            self._start_if_due(time.monotonic())
        elif after.phase is Phase.DRAINING:
            self._broadcast({"type": "drain"})
            self._orders.drain()
        elif after.phase is Phase.ENDED and after.verdict is not None:
            self._ended = time.monotonic()
            self._broadcast(_end_message(after.verdict))
            self._orders.end(after.verdict)

    def _excuse(self, host: str) -> None:
        """Wait no longer for a host that is gone, or that never came, when the job is stopping."""
        self._feed(Finished(host))
        self._feed(Drained(host))

    def _start_if_due(self, now: float) -> None:
        if self._start_at is None or now < self._start_at:
            return
        self._start_at = None
        rendezvous = None
        if self._guard is not None:
            try:
                port = self._guard.release(self._log)
            except NetworkError as error:
                failure = Failure(self._job.current_host, Role.SCHEDULER, str(error))
                self._feed(Failed(failure, time.monotonic()))
                return
            servers = self._job.settings.servers_per_host
            rendezvous = Rendezvous(self._address, port, self._address, servers)
        self._broadcast(_start_message(rendezvous))
        self._orders.start(rendezvous)

    def tick(self, now: float) -> float:
        due = now + 1.0
        if self._channel is not None:
            due = min(due, self._channel.tick(now))
        self._feed(Tick(now))
        if self._cluster.verdict is None and not self._cluster.stopping:
            self._start_if_due(now)
        if self._start_at is not None:
            due = min(due, max(now, self._start_at))
        if self._cluster.settled is not None:
            due = min(due, max(now, self._cluster.settled))
        if self._cluster.verdict is None and not self._cluster.stopping:
            self._watch_joining(now)
            self._watch_progress(now)
        return due

    def _watch_joining(self, now: float) -> None:
        missing = sorted(set(self._job.hosts) - self._joined)
        waited = now - self._opened
        if not missing or self._cluster.phase is not Phase.GATHERING:
            return
        if waited >= self._job.settings.join_timeout:
            why = "; ".join(network.reachability(host, self._job) for host in missing[:10])
            limit = self._job.settings.join_timeout
            reason = f"{_names(missing)} did not join within {limit:g} s ({why})"
            failure = Failure(missing[0], Role.ENTRYPOINT, reason)
            self._feed(Failed(failure, now))
        elif now - self._voiced >= VOICE:
            self._voiced = now
            left = self._job.settings.join_timeout - waited
            text = f"waiting for {_names(missing)} to join, {left:.0f} s left"
            self._log("entrypoint", text)
            self._broadcast({"type": "note", "text": text})

    def _watch_progress(self, now: float) -> None:
        finished = self._cluster.finished
        waiting = sorted(self._cluster.hosts - finished)
        if self._cluster.phase is not Phase.TRAINING or not waiting:
            if self._cluster.phase is Phase.GATHERING and now - self._voiced >= VOICE:
                self._voice_steps(now)
            return
        idle = min(self._peers[host].idle for host in waiting)
        limit = self._job.settings.stall_timeout
        if limit and idle >= limit:
            reason = f"stalled: no progress for {idle:.0f} s on {_names(waiting)}"
            if finished:
                reason += (
                    f", while {_names(sorted(finished))} had finished: with dist_sync every host "
                    "must push equally often; give all hosts the same number of batches"
                )
            self._feed(Failed(Failure(waiting[0], Role.WORKER, reason), now))
        elif finished and now - self._voiced >= VOICE:
            self._voiced = now
            told = ", ".join(
                host
                + (
                    f" (no progress for {self._peers[host].idle:.0f} s)"
                    if self._peers[host].idle >= VOICE
                    else ""
                )
                for host in waiting[:10]
            )
            text = f"{_names(sorted(finished))} finished and waiting for {told}"
            self._log("entrypoint", text)
            self._broadcast({"type": "note", "text": text})

    def _voice_steps(self, now: float) -> None:
        self._voiced = now
        busy = [
            f"{host} ({self._peers[host].step.value})"  # type: ignore[union-attr]
            for host in sorted(self._joined - self._cluster.ready)
            if self._peers[host].step is not None
        ]
        if busy:
            text = f"waiting for {_names(busy)}"
            self._log("entrypoint", text)
            self._broadcast({"type": "note", "text": text})

    def _broadcast(self, body: Mapping[str, Any]) -> None:
        if self._channel is not None:
            self._channel.broadcast(body)

    def _send(self, host: str, body: Mapping[str, Any]) -> None:
        if self._channel is not None:
            self._channel.send(host, body)

    def settled(self, now: float) -> bool:
        if self._ended is None or self._channel is None:
            return self._channel is None
        if now - self._ended >= TELL:
            return True
        # A follower that has its verdict says goodbye. One that has not joined yet gets its
        # chance to hear of a failure before it waits for a leader that is gone.
        told = self._joined == {self._job.current_host} and not self._channel.pending()
        verdict = self._cluster.verdict
        late = verdict is not None and verdict.outcome is not Outcome.SUCCESS
        return told and not (late and len(self._names) < len(self._job.hosts) - 1)

    def close(self) -> None:
        if self._guard is not None:
            self._guard.close()
        if self._channel is not None:
            self._channel.close()


class _Following:
    """Every other host's coordinator: joins the leader, passes reports on, and takes orders."""

    def __init__(
        self, job: Job, log: Log, orders: Orders, selector: selectors.BaseSelector
    ) -> None:
        """Begin to look for the leader. See ``coordinator``."""
        self._job = job
        self._log = log
        self._orders = orders
        self._selector = selector
        self._opened = time.monotonic()
        self._voiced = self._opened
        self._channel: Optional[control.Follower] = None
        self._own_address = ""
        self._joined = False
        self._left = False
        self._unsent: List[Tuple[Mapping[str, Any], Optional[float]]] = []
        self._failure: Optional[Tuple[float, Failure]] = None
        self._stopping = False
        self._ended: Optional[float] = None
        self._unresolved = f"the name {job.leader} has not been resolved yet"
        self._resolved, answer = socket.socketpair()
        selector.register(self._resolved, selectors.EVENT_READ, self._on_resolved)
        threading.Thread(target=self._resolve, args=(answer,), name="resolve", daemon=True).start()

    def _resolve(self, answer: socket.socket) -> None:
        def attempt() -> str:
            try:
                return network.resolve(self._job.leader, self._job.settings.host_addresses)
            except OSError as error:
                self._unresolved = f"the name {self._job.leader} does not resolve ({error})"
                raise

        from retrying import Retrying  # noqa: PLC0415  (5 ms that only a follower has to spend)

        limit = int(self._job.settings.join_timeout * 1000)
        retrying = Retrying(stop_max_delay=limit, wait_fixed=500)
        with answer, contextlib.suppress(OSError):  # the join deadline speaks for it
            answer.sendall(retrying.call(attempt).encode("ascii"))

    def _on_resolved(self, mask: int) -> None:
        """Call the leader at the address that came; none comes after the join deadline."""
        address = self._resolved.recv(64).decode("ascii")
        self._selector.unregister(self._resolved)
        self._resolved.close()
        if not address:
            return
        self._channel = control.Follower(
            self._job.current_host,
            self._job.leader,
            (address, self._job.settings.control_port),
            job_key(self._job),
            self._job.settings.peer_timeout,
            self._selector,
            self._on_peer,
        )

    # What this host reports.

    def report_step(self, step: Step) -> None:
        self._send({"type": "step", "step": step.name})
        if step is Step.FINISHED and self._left:
            self._orders.drain()

    def report_drained(self) -> None:
        self._send({"type": "drained"})
        if self._left:
            self._end(Verdict(Outcome.STOP))

    def report_failure(self, failure: Failure, when: float) -> None:
        if self._failure is None:
            self._failure = (when, failure)
        self._send({"type": "failed", "failure": failure.to_json()}, when)

    def report_stop(self, stop: Stop, when: float) -> None:
        self._send({"type": "stop", "signal": stop.signal}, when)
        if not self._stopping:
            self._stopping = True
            self._orders.stop(stop)
        if not self._joined:
            self._left = True  # nobody is there to give more orders

    def report_idle(self, idle: float) -> None:
        if self._joined:
            self._send({"type": "idle", "idle": idle})

    def give_up(self) -> None:
        self._end(Verdict(Outcome.STOP))

    def _send(self, body: Mapping[str, Any], when: Optional[float] = None) -> None:
        if self._channel is None or not self._joined:
            self._unsent.append((body, when))
            return
        if when is not None:
            # Clocks of two machines do not compare; how long ago it was, does.
            body = {**body, "age": time.monotonic() - when}
        self._channel.send(body)

    # What the leader says.

    def _on_peer(self, event: Any) -> None:
        if isinstance(event, control.PeerJoined):
            self._joined = True
            self._own_address = event.local_address
            self._log("entrypoint", f"joined {event.host} at {event.address}")
            unsent, self._unsent = self._unsent, []
            for body, when in unsent:
                self._send(body, when)
        elif isinstance(event, control.PeerMessage):
            try:
                self._on_message(event.body)
            except (KeyError, TypeError, ValueError) as error:
                self._log.warning("entrypoint", f"{event.host} said what makes no sense: {error!r}")
        elif isinstance(event, control.Refused):
            failure = Failure(
                self._job.current_host,
                Role.ENTRYPOINT,
                f"{self._job.leader} refused this host: {event.reason}",
            )
            self._end(Verdict(Outcome.FAILURE, failure))
        elif isinstance(event, control.PeerLost):
            self._on_lost(event.reason)

    def _on_message(self, body: Mapping[str, Any]) -> None:
        kind = body["type"]
        if kind == "start":
            meeting = body["rendezvous"]
            rendezvous = None
            if meeting is not None:
                own = network.interface_address(self._job.network_interface) or self._own_address
                rendezvous = Rendezvous(
                    str(meeting["address"]), int(meeting["port"]), own, int(meeting["servers"])
                )
            self._orders.start(rendezvous)
        elif kind == "stop":
            if not self._stopping:
                self._stopping = True
                self._orders.stop(Stop(str(body["host"]), int(body["signal"])))
        elif kind == "stepped":
            self._orders.stepped()
        elif kind == "drain":
            self._orders.drain()
        elif kind == "end":
            self._end(Verdict.from_json(body["verdict"]))
        elif kind == "note":
            self._log("entrypoint", str(body["text"]))
        else:
            raise ValueError(f"no message is of type {kind!r}")

    def _on_lost(self, reason: str) -> None:
        if self._ended is not None:
            return
        self._log.warning("entrypoint", f"lost {self._job.leader}: {reason}")
        self._joined = False
        if self._stopping:
            self._left = True
            return
        failure = lost(self._job.leader, reason)
        if self._failure is not None:
            failure = self._failure[1]
        self._end(Verdict(Outcome.FAILURE, failure))

    def _end(self, verdict: Verdict) -> None:
        if self._ended is not None:
            return
        self._ended = time.monotonic()
        if self._channel is not None:
            self._channel.goodbye()
        self._orders.end(verdict)

    def tick(self, now: float) -> float:
        due = now + 1.0
        if self._channel is not None:
            due = min(due, self._channel.tick(now))
        if self._failure is not None and now - self._failure[0] >= TELL:
            self._end(Verdict(Outcome.FAILURE, self._failure[1]))
        if not self._joined and self._ended is None and not self._stopping:
            self._watch_joining(now)
        return due

    def _watch_joining(self, now: float) -> None:
        waited = now - self._opened
        if waited >= self._job.settings.join_timeout:
            limit = self._job.settings.join_timeout
            reason = f"could not be joined within {limit:g} s: {self._obstacle()}"
            failure = Failure(self._job.leader, Role.ENTRYPOINT, reason)
            self._end(Verdict(Outcome.FAILURE, failure))
        elif now - self._voiced >= VOICE:
            self._voiced = now
            left = self._job.settings.join_timeout - waited
            text = f"waiting to join {self._job.leader}, {left:.0f} s left: {self._obstacle()}"
            self._log("entrypoint", text)

    def _obstacle(self) -> str:
        if self._channel is None:
            return self._unresolved
        port = self._job.settings.control_port
        return f"on port {port}, {self._job.leader}: {self._channel.obstacle}"

    def settled(self, now: float) -> bool:
        if self._channel is None or self._ended is None:
            return True
        return not self._channel.pending() or now - self._ended >= TELL

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._resolved.close()


def _start_message(rendezvous: Optional[Rendezvous]) -> Mapping[str, Any]:
    meeting = None
    if rendezvous is not None:
        meeting = {
            "address": rendezvous.address,
            "port": rendezvous.port,
            "servers": rendezvous.servers_per_host,
        }
    return {"type": "start", "rendezvous": meeting}


def _stop_message(stop: Stop) -> Mapping[str, Any]:
    return {"type": "stop", "host": stop.host, "signal": stop.signal}


def _end_message(verdict: Verdict) -> Mapping[str, Any]:
    return {"type": "end", "verdict": verdict.to_json()}


def _names(hosts: List[str]) -> str:
    """Return ``a, b and c``, cut short after ten."""
    shown = hosts[:10]
    if len(hosts) > 10:
        return ", ".join(shown) + f" and {len(hosts) - 10} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
