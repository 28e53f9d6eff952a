"""Which worker gets which requests of one model: a queue as a pure state machine.

Nothing here waits, reads a clock or sends. Events come in as calls, with the time; ``Action``s that
the caller executes go out. Requests are dispatched in the order of their arrival to whichever
worker is free, alone or as a batch.
"""

import enum
from collections import deque
from dataclasses import dataclass
from typing import Deque, Dict, Hashable, Iterable, List, Optional, Tuple, Union

from sagemaker_mxnet_serving.inference import InferenceError

_TRIES = 2
"""How often a request is sent to a worker that dies over it. Predictions change nothing, so a retry
is safe; a request that has killed two workers would kill a third."""

_BATCH_BYTES = 64 * 1024 * 1024
"""Bytes of requests in one batch; a larger request is predicted alone."""


@dataclass(frozen=True)
class Limits:
    """Limits of a dispatcher.

    Attributes:
        queue_size: requests that may wait.
        timeout: seconds that a worker may take, and that a request may wait for one.
        batch_size: largest number of requests in a batch.
        batch_delay: seconds that a request waits for others to fill its batch.
    """

    queue_size: int = 2048
    timeout: float = 60.0
    batch_size: int = 1
    batch_delay: float = 0.0


class RequestState(enum.Enum):
    """Where a request is."""

    WAITING = "waiting"
    """In the queue."""
    SENT = "sent"
    """With a worker."""
    DONE = "done"
    """Answered, rejected, or cancelled by its client."""


class QueuedRequest:
    """A request of the queue.

    Attributes:
        size: bytes of its head and its body.
        state: where it is.
        tries: how often it was sent to a worker.
        arrived: when it came (monotonic, seconds).
        dispatched: when it was last sent to a worker.
    """

    __slots__ = ("arrived", "dispatched", "size", "state", "tries")

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.state = RequestState.WAITING
        self.tries = 0
        self.arrived = 0.0
        self.dispatched = 0.0


class Rejection(enum.Enum):
    """Why a request is not answered by the model: the HTTP status and the message."""

    QUEUE_FULL = (503, "the queue is full; try again later")
    CLOSED = (503, "the server is stopping; send the request to another one")
    UNLOADING = (503, "the model is being unloaded; try again later")
    NO_MODEL = (503, "the model has failed; see the server's log")
    WAITED = (503, "no worker became free in time; try again later")
    OVERDUE = (
        504,
        "the prediction took longer than the server allows; raise "
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS on the server",
    )
    CRASHED = (500, "two worker processes died while processing this request; see the server's log")

    @property
    def error(self) -> InferenceError:
        """The error that the client gets."""
        status, message = self.value
        return InferenceError(message, status)


Worker = Hashable


@dataclass(frozen=True)
class Send:
    """Send a worker a batch of requests."""

    worker: Worker
    requests: Tuple[QueuedRequest, ...]


@dataclass(frozen=True)
class Reject:
    """Answer a request with an error."""

    request: QueuedRequest
    rejection: Rejection


@dataclass(frozen=True)
class Kill:
    """Kill a worker that exceeds the timeout."""

    worker: Worker


Action = Union[Send, Reject, Kill]


@dataclass
class _Busy:
    requests: Tuple[QueuedRequest, ...]
    deadline: float
    overdue: bool = False


class Dispatcher:
    """The queue of one model and its workers.

    Args:
        limits: its limits.

    Attributes:
        batching: whether requests may be batched, within ``limits``.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.batching = limits.batch_size > 1
        self._queue: Deque[QueuedRequest] = deque()
        self._waiting = 0
        # The worker that was free last has the warmest caches: it is taken from the end.
        self._idle: List[Worker] = []
        self._busy: Dict[Worker, _Busy] = {}
        self._closed: Optional[Rejection] = None

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return self._waiting

    @property
    def unanswered(self) -> int:
        """How many requests wait, or are with a worker and still wanted."""
        sent = (t for busy in self._busy.values() for t in busy.requests)
        return self._waiting + sum(request.state is RequestState.SENT for request in sent)

    @property
    def workers(self) -> int:
        """How many workers can answer. Thread-safe."""
        return len(self._idle) + sum(not busy.overdue for busy in list(self._busy.values()))

    def assigned(self, worker: Worker) -> Tuple[QueuedRequest, ...]:
        """Return the requests that a worker is working on."""
        busy = self._busy.get(worker)
        return busy.requests if busy is not None else ()

    def submit(self, request: QueuedRequest, now: float) -> List[Action]:
        """Queue a request, or reject it."""
        request.arrived = now
        rejection = self._closed
        if rejection is None and self._waiting >= self._limits.queue_size:
            rejection = Rejection.QUEUE_FULL
        if rejection is not None:
            return [_reject(request, rejection)]
        self._queue.append(request)
        self._waiting += 1
        return self._dispatch(now)

    def cancel(self, request: QueuedRequest) -> None:
        """Remove a request whose client has disconnected; its worker, if any, finishes it."""
        if request.state is RequestState.WAITING:
            self._waiting -= 1
        request.state = RequestState.DONE

    def joined(self, worker: Worker, now: float) -> List[Action]:
        """Add a new worker, which is idle."""
        self._idle.append(worker)
        return self._dispatch(now)

    def answered(
        self, worker: Worker, now: float
    ) -> Tuple[Tuple[QueuedRequest, ...], List[Action]]:
        """Record that a worker has answered; return its requests, and the next actions.

        Requests whose state was ``DONE`` before do not need their response any more.
        """
        busy = self._busy.pop(worker, None)
        if busy is None or busy.overdue:
            # It is being killed, and its requests have been answered.
            if busy is not None:
                self._busy[worker] = busy
            return (), []
        wanted = tuple(t for t in busy.requests if t.state is RequestState.SENT)
        for request in wanted:
            request.state = RequestState.DONE
        self._idle.append(worker)
        return busy.requests, self._dispatch(now)

    def retire(self, worker: Worker) -> None:
        """Send no further requests to a worker that has died or is about to be killed."""
        if worker in self._idle:
            self._idle.remove(worker)

    def lost(self, worker: Worker, now: float, unread: bool = False) -> List[Action]:
        """Remove a worker that has died; retry its requests once, each of them alone.

        Args:
            worker: the worker.
            now: the time (monotonic, seconds).
            unread: whether it died without having read its requests. They did not cause that, and
                this does not count as a try.
        """
        self.retire(worker)
        busy = self._busy.pop(worker, None)
        if busy is None:
            return []
        actions: List[Action] = []
        for request in reversed(busy.requests):
            if request.state is not RequestState.SENT:
                continue
            if unread:
                request.tries -= 1
            if request.tries >= _TRIES:
                actions.append(_reject(request, Rejection.CRASHED))
            else:
                request.state = RequestState.WAITING
                self._queue.appendleft(request)
                self._waiting += 1
        return actions + self._dispatch(now)

    def close(self, rejection: Rejection, waiting: bool = False) -> List[Action]:
        """Reject all further requests.

        Args:
            rejection: why.
            waiting: whether to reject the requests in the queue too.
        """
        self._closed = rejection
        if not waiting:
            return []
        rejected = [t for t in self._queue if t.state is RequestState.WAITING]
        self._queue.clear()
        self._waiting = 0
        return [_reject(request, rejection) for request in rejected]

    def abandon(self, rejection: Rejection) -> List[Action]:
        """Reject all requests that are not answered, and all further ones."""
        sent = [
            t for busy in self._busy.values() for t in busy.requests if t.state is RequestState.SENT
        ]
        return [*(_reject(t, rejection) for t in sent), *self.close(rejection, waiting=True)]

    def tick(self, now: float) -> List[Action]:
        """Return the actions that are due."""
        actions: List[Action] = []
        for worker, busy in self._busy.items():
            if not busy.overdue and now >= busy.deadline:
                busy.overdue = True
                actions += [
                    _reject(t, Rejection.OVERDUE)
                    for t in busy.requests
                    if t.state is RequestState.SENT
                ]
                actions.append(Kill(worker))
        while self._queue:
            request = self._queue[0]
            if request.state is RequestState.WAITING:
                if now < request.arrived + self._limits.timeout:
                    break
                self._waiting -= 1
                actions.append(_reject(request, Rejection.WAITED))
            self._queue.popleft()
        return actions + self._dispatch(now)

    def due(self) -> Optional[float]:
        """Return when to call ``tick`` next; ``None`` while there are no requests."""
        times = [busy.deadline for busy in self._busy.values() if not busy.overdue]
        first = self._first()
        if first is not None:
            times.append(first.arrived + self._limits.timeout)
            if self._idle:
                times.append(first.arrived + self._limits.batch_delay)
        return min(times, default=None)

    def _first(self) -> Optional[QueuedRequest]:
        """Return the request that has waited longest; drop cancelled ones before it."""
        while self._queue and self._queue[0].state is not RequestState.WAITING:
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
            requests = tuple(self._take(size))
            worker = self._idle.pop()
            for request in requests:
                request.state = RequestState.SENT
                request.tries += 1
                request.dispatched = now
            self._busy[worker] = _Busy(requests, now + self._limits.timeout)
            actions.append(Send(worker, requests))
        return actions

    def _take(self, count: int) -> Iterable[QueuedRequest]:
        """Remove the next requests that may be batched from the queue, at most ``count``."""
        taken: List[QueuedRequest] = []
        size = 0
        while len(taken) < count:
            request = self._first()
            if request is None:
                break
            alone = request.tries > 0 or size + request.size > _BATCH_BYTES
            if taken and alone:
                break
            self._queue.popleft()
            self._waiting -= 1
            size += request.size
            taken.append(request)
            if alone:
                break
        return taken


def _reject(request: QueuedRequest, rejection: Rejection) -> Reject:
    request.state = RequestState.DONE
    return Reject(request, rejection)
