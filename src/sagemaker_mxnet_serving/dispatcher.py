"""Which worker gets which requests of one model: a queue as a pure state machine.

Nothing here waits, reads a clock or sends. Events come in as calls, with the time; what is to be
done goes out as ``Action``s. Requests are answered in the order in which they came, on whichever
worker is free, alone or together with others.
"""

import enum
from collections import deque
from dataclasses import dataclass
from typing import Deque, Dict, Hashable, Iterable, List, Optional, Tuple, Union

_TRIES = 2
"""How often a request is given to a worker that dies over it. Predictions change nothing, so that
a second try is safe; a request that has killed two workers would kill the third."""

_BATCH_BYTES = 64 * 1024 * 1024
"""Bytes of requests that are predicted together; a larger one is predicted alone."""


@dataclass(frozen=True)
class Limits:
    """What a dispatcher keeps to.

    Attributes:
        queue_size: requests that may wait.
        timeout: seconds that a worker may take, and that a request may wait for one.
        batch_size: requests that may be given to a worker together.
        batch_delay: seconds that a request waits for others to go with.
    """

    queue_size: int = 2048
    timeout: float = 60.0
    batch_size: int = 1
    batch_delay: float = 0.0


class State(enum.Enum):
    """Where a request is."""

    WAITING = "waiting"
    """In the queue."""
    SENT = "sent"
    """With a worker."""
    DONE = "done"
    """Answered, refused, or given up by its caller."""


# Names of their own: CPython 3.11 takes 0.4 us to find a member of an enumeration.
_WAITING, _SENT, _DONE = State


class Ticket:
    """A request on its way.

    Attributes:
        size: bytes of its head and its body.
        state: where it is.
        tries: how often it was given to a worker.
        arrived: when it came (monotonic, seconds).
        sent: when a worker got it the last time.
    """

    __slots__ = ("arrived", "sent", "size", "state", "tries")

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.state = _WAITING
        self.tries = 0
        self.arrived = 0.0
        self.sent = 0.0


class Refusal(enum.Enum):
    """Why a request gets no answer of the model. The value is the HTTP status."""

    QUEUE_FULL = (503, "too many requests wait for a worker; try again later")
    CLOSED = (503, "the server is stopping; send the request to another one")
    UNLOADING = (503, "the model is being unloaded; try again later")
    NO_MODEL = (503, "the model cannot answer")
    WAITED = (503, "no worker became free in time; try again later")
    OVERDUE = (504, "the model took longer than the server allows")
    CRASHED = (500, "the worker process died over this request; see the server's log")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[0]

    @property
    def message(self) -> str:
        """What the caller reads."""
        return self.value[1]


Worker = Hashable


@dataclass(frozen=True)
class Send:
    """Give requests to a worker, to be predicted together."""

    worker: Worker
    tickets: Tuple[Ticket, ...]


@dataclass(frozen=True)
class Refuse:
    """Answer a request with an error."""

    ticket: Ticket
    refusal: Refusal


@dataclass(frozen=True)
class Kill:
    """End a worker that takes too long over requests."""

    worker: Worker


Action = Union[Send, Refuse, Kill]


@dataclass
class _Busy:
    tickets: Tuple[Ticket, ...]
    deadline: float
    overdue: bool = False


class Dispatcher:
    """The queue of one model and its workers.

    Args:
        limits: what to keep to.

    Attributes:
        batching: whether requests may go together, as far as ``limits`` allow.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.batching = limits.batch_size > 1
        self._queue: Deque[Ticket] = deque()
        self._waiting = 0
        # The worker that was free last has the warmest caches: it is taken from the end.
        self._idle: List[Worker] = []
        self._busy: Dict[Worker, _Busy] = {}
        self._closed: Optional[Refusal] = None

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return self._waiting

    @property
    def unanswered(self) -> int:
        """How many requests wait, or are with a worker and still wanted."""
        sent = (t for busy in self._busy.values() for t in busy.tickets)
        return self._waiting + sum(ticket.state is _SENT for ticket in sent)

    @property
    def workers(self) -> int:
        """How many workers can answer. Any thread may ask."""
        return len(self._idle) + sum(not busy.overdue for busy in list(self._busy.values()))

    def held(self, worker: Worker) -> Tuple[Ticket, ...]:
        """Return the requests that a worker has."""
        busy = self._busy.get(worker)
        return busy.tickets if busy is not None else ()

    def submit(self, ticket: Ticket, now: float) -> List[Action]:
        """Take a request."""
        ticket.arrived = now
        refusal = self._closed
        if refusal is None and self._waiting >= self._limits.queue_size:
            refusal = Refusal.QUEUE_FULL
        if refusal is not None:
            return [_refuse(ticket, refusal)]
        self._queue.append(ticket)
        self._waiting += 1
        return self._dispatch(now)

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request whose caller has gone; a worker that has it is left to finish."""
        if ticket.state is _WAITING:
            self._waiting -= 1
        ticket.state = _DONE

    def joined(self, worker: Worker, now: float) -> List[Action]:
        """Take a worker that has come, and is free."""
        self._idle.append(worker)
        return self._dispatch(now)

    def answered(self, worker: Worker, now: float) -> Tuple[Tuple[Ticket, ...], List[Action]]:
        """Take a worker's answer; return what it was given, and what to do next.

        Tickets whose state is ``DONE`` already want no answer any more.
        """
        busy = self._busy.pop(worker, None)
        if busy is None or busy.overdue:
            # It is being killed: whatever it says is too late.
            if busy is not None:
                self._busy[worker] = busy
            return (), []
        wanted = tuple(t for t in busy.tickets if t.state is _SENT)
        for ticket in wanted:
            ticket.state = _DONE
        self._idle.append(worker)
        return busy.tickets, self._dispatch(now)

    def retire(self, worker: Worker) -> None:
        """Give a worker that is about to be killed nothing more."""
        if worker in self._idle:
            self._idle.remove(worker)

    def lost(self, worker: Worker, now: float) -> List[Action]:
        """Forget a worker that has gone; try what it had once more, each request alone."""
        self.retire(worker)
        busy = self._busy.pop(worker, None)
        if busy is None:
            return []
        actions: List[Action] = []
        for ticket in reversed(busy.tickets):
            if ticket.state is not _SENT:
                continue
            if ticket.tries >= _TRIES:
                actions.append(_refuse(ticket, Refusal.CRASHED))
            else:
                ticket.state = _WAITING
                self._queue.appendleft(ticket)
                self._waiting += 1
        return actions + self._dispatch(now)

    def close(self, refusal: Refusal, waiting: bool = False) -> List[Action]:
        """Take no further request.

        Args:
            refusal: what callers are told from here on.
            waiting: whether the requests that wait are refused too.
        """
        self._closed = refusal
        if not waiting:
            return []
        refused = [t for t in self._queue if t.state is _WAITING]
        self._queue.clear()
        self._waiting = 0
        return [_refuse(ticket, refusal) for ticket in refused]

    def abandon(self, refusal: Refusal) -> List[Action]:
        """Refuse everything that is not answered, with a worker or not; take nothing more."""
        sent = [t for busy in self._busy.values() for t in busy.tickets if t.state is _SENT]
        return [*(_refuse(t, refusal) for t in sent), *self.close(refusal, waiting=True)]

    def tick(self, now: float) -> List[Action]:
        """Do what is due by the passing of time."""
        actions: List[Action] = []
        for worker, busy in self._busy.items():
            if not busy.overdue and now >= busy.deadline:
                busy.overdue = True
                actions += [_refuse(t, Refusal.OVERDUE) for t in busy.tickets if t.state is _SENT]
                actions.append(Kill(worker))
        while self._queue:
            ticket = self._queue[0]
            if ticket.state is _WAITING:
                if now < ticket.arrived + self._limits.timeout:
                    break
                self._waiting -= 1
                actions.append(_refuse(ticket, Refusal.WAITED))
            self._queue.popleft()
        return actions + self._dispatch(now)

    def due(self) -> Optional[float]:
        """Return when ``tick`` is to be called next; ``None`` while nothing is under way."""
        times = [busy.deadline for busy in self._busy.values() if not busy.overdue]
        first = self._first()
        if first is not None:
            times.append(first.arrived + self._limits.timeout)
            if self._idle:
                times.append(first.arrived + self._limits.batch_delay)
        return min(times, default=None)

    def _first(self) -> Optional[Ticket]:
        """Return the request that has waited longest; drop what is not wanted any more."""
        while self._queue and self._queue[0].state is not _WAITING:
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def _dispatch(self, now: float) -> List[Action]:
        actions: List[Action] = []
        while self._idle:
            first = self._first()
            if first is None:
                break
            size = self._limits.batch_size if self.batching else 1
            full = self._waiting >= size
            if not (full or first.tries or now >= first.arrived + self._limits.batch_delay):
                break
            tickets = tuple(self._take(size))
            worker = self._idle.pop()
            for ticket in tickets:
                ticket.state = _SENT
                ticket.tries += 1
                ticket.sent = now
            self._busy[worker] = _Busy(tickets, now + self._limits.timeout)
            actions.append(Send(worker, tickets))
        return actions

    def _take(self, count: int) -> Iterable[Ticket]:
        """Take the next requests that may go together, ``count`` at the most."""
        taken: List[Ticket] = []
        size = 0
        while len(taken) < count:
            ticket = self._first()
            if ticket is None:
                break
            alone = ticket.tries > 0 or size + ticket.size > _BATCH_BYTES
            if taken and alone:
                break
            self._queue.popleft()
            self._waiting -= 1
            size += ticket.size
            taken.append(ticket)
            if alone:
                break
        return taken


def _refuse(ticket: Ticket, refusal: Refusal) -> Refuse:
    ticket.state = _DONE
    return Refuse(ticket, refusal)
