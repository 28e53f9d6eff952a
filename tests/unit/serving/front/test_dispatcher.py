"""The queue of a model, with events in any order."""

from typing import Dict, List, Set

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sagemaker_mxnet_serving.front.dispatcher import (
    Action,
    Dispatcher,
    Kill,
    Limits,
    QueuedRequest,
    Reject,
    Rejection,
    RequestState,
    Send,
)


def requests(count: int, size: int = 1) -> List[QueuedRequest]:
    return [QueuedRequest(size) for _ in range(count)]


def sent(actions: List[Action]) -> List[List[QueuedRequest]]:
    return [list(each.requests) for each in actions if isinstance(each, Send)]


def rejected(actions: List[Action]) -> Dict[QueuedRequest, Rejection]:
    return {each.request: each.rejection for each in actions if isinstance(each, Reject)}


def test_requests_are_dispatched_in_order() -> None:
    dispatcher = Dispatcher(Limits())
    first, second, third = requests(3)
    assert dispatcher.submit(first, 0) == []
    assert dispatcher.submit(second, 1) == []
    assert sent(dispatcher.joined("a", 2)) == [[first]]
    assert dispatcher.submit(third, 3) == []
    done, actions = dispatcher.answered("a", 4)
    assert (list(done), sent(actions)) == ([first], [[second]])


def test_full_queue_rejects_requests() -> None:
    dispatcher = Dispatcher(Limits(queue_size=2))
    first, second, third = requests(3)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    assert rejected(dispatcher.submit(third, 0)) == {third: Rejection.QUEUE_FULL}
    assert sent(dispatcher.joined("a", 0) + dispatcher.joined("b", 0)) == [[first], [second]]


def test_request_of_a_dead_worker_is_retried_first() -> None:
    dispatcher = Dispatcher(Limits())
    first, second = requests(2)
    dispatcher.joined("a", 0)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    assert dispatcher.lost("a", 1) == []
    assert sent(dispatcher.joined("b", 2)) == [[first]]
    assert rejected(dispatcher.lost("b", 3)) == {first: Rejection.CRASHED}
    assert sent(dispatcher.joined("c", 4)) == [[second]]


def test_request_that_a_dead_worker_did_not_read_is_retried() -> None:
    """Workers that die together, as with their model process, are lost one after another."""
    dispatcher = Dispatcher(Limits())
    (request,) = requests(1)
    for worker in "abcd":
        dispatcher.joined(worker, 0)
    assert dispatcher.submit(request, 0) == [Send("d", (request,))]
    assert sent(dispatcher.lost("d", 1)) == [[request]]
    assert sent(dispatcher.lost("c", 2, unread=True)) == [[request]]
    assert sent(dispatcher.lost("b", 3, unread=True)) == [[request]]
    assert rejected(dispatcher.lost("a", 4)) == {request: Rejection.CRASHED}


def test_overdue_worker_is_killed_and_its_late_response_ignored() -> None:
    dispatcher = Dispatcher(Limits(timeout=10))
    (request,) = requests(1)
    dispatcher.joined("a", 0)
    dispatcher.submit(request, 0)
    assert dispatcher.due() == 10
    assert dispatcher.tick(9.9) == []
    actions = dispatcher.tick(10)
    assert rejected(actions) == {request: Rejection.OVERDUE}
    assert Kill("a") in actions
    assert dispatcher.answered("a", 11) == ((), [])
    assert dispatcher.workers == 0
    assert dispatcher.lost("a", 12) == [], "it is not tried again"


def test_request_times_out_in_the_queue() -> None:
    dispatcher = Dispatcher(Limits(timeout=10))
    first, second = requests(2)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 5)
    assert rejected(dispatcher.tick(10)) == {first: Rejection.WAITED}
    assert dispatcher.due() == 15


def test_batch_waits_at_most_its_delay() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3, batch_delay=0.5))
    first, second, third, fourth = requests(4)
    dispatcher.joined("a", 0)
    dispatcher.joined("b", 0)
    assert dispatcher.submit(first, 0) == []
    assert dispatcher.due() == 0.5
    assert dispatcher.submit(second, 0.1) == []
    assert sent(dispatcher.submit(third, 0.2)) == [[first, second, third]]
    assert dispatcher.submit(fourth, 1) == []
    assert sent(dispatcher.tick(1.5)) == [[fourth]]


def test_queued_requests_are_batched() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3))
    waiting = requests(5)
    for request in waiting:
        dispatcher.submit(request, 0)
    assert sent(dispatcher.joined("a", 1)) == [waiting[:3]]
    assert sent(dispatcher.answered("a", 2)[1]) == [waiting[3:]]


def test_no_batches_for_a_model_that_cannot_be_batched() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3))
    dispatcher.batching = False
    waiting = requests(2)
    for request in waiting:
        dispatcher.submit(request, 0)
    assert sent(dispatcher.joined("a", 1)) == [waiting[:1]]


def test_requests_of_a_failed_batch_are_retried_one_by_one() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3))
    batch = requests(3)
    for request in batch:
        dispatcher.submit(request, 0)
    dispatcher.joined("a", 0)
    dispatcher.lost("a", 1)
    assert sent(dispatcher.joined("b", 2)) == [[batch[0]]]
    assert rejected(dispatcher.lost("b", 3)) == {batch[0]: Rejection.CRASHED}
    assert sent(dispatcher.joined("c", 4)) == [[batch[1]]]
    assert sent(dispatcher.joined("d", 4)) == [[batch[2]]]


def test_requests_do_not_go_to_workers_that_are_being_killed() -> None:
    dispatcher = Dispatcher(Limits())
    (request,) = requests(1)
    dispatcher.joined("a", 0)
    dispatcher.joined("b", 0)
    assert dispatcher.submit(request, 0) == [Send("b", (request,))]
    dispatcher.retire("a")
    dispatcher.retire("b")
    assert dispatcher.lost("b", 1) == []
    assert dispatcher.lost("a", 1) == []
    assert sent(dispatcher.joined("c", 2)) == [[request]]


def test_large_bodies_are_not_batched() -> None:
    dispatcher = Dispatcher(Limits(batch_size=8))
    large = requests(2, size=40 * 1024 * 1024)
    for request in large:
        dispatcher.submit(request, 0)
    assert sent(dispatcher.joined("a", 0)) == [[large[0]]]


def test_cancelled_request_is_not_dispatched() -> None:
    dispatcher = Dispatcher(Limits())
    first, second = requests(2)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    dispatcher.cancel(first)
    assert dispatcher.waiting == 1
    assert sent(dispatcher.joined("a", 1)) == [[second]]


def test_close_answers_queued_requests_and_rejects_others() -> None:
    dispatcher = Dispatcher(Limits())
    first, second, late = requests(3)
    dispatcher.joined("a", 0)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    dispatcher.close(Rejection.CLOSED)
    assert rejected(dispatcher.submit(late, 1)) == {late: Rejection.CLOSED}
    assert sent(dispatcher.answered("a", 2)[1]) == [[second]]
    assert rejected(dispatcher.abandon(Rejection.CLOSED)) == {second: Rejection.CLOSED}
    assert dispatcher.unanswered == 0


def test_workers_may_join_while_they_are_counted() -> None:
    """The metrics are asked for by a thread of their own."""
    dispatcher = Dispatcher(Limits())

    class Growing:
        @property
        def overdue(self) -> bool:
            dispatcher._busy["another"] = self
            return False

    dispatcher._busy["a"] = Growing()
    assert dispatcher.workers == 1


class AnyOrder(RuleBasedStateMachine):
    """Every request is settled exactly once, whatever happens, and no worker has two batches."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limits = Limits(queue_size=5, timeout=10.0, batch_size=3, batch_delay=1.0)
        self.dispatcher = Dispatcher(self.limits)
        self.names = 0
        self.idle: Set[str] = set()
        self.busy: Dict[str, List[QueuedRequest]] = {}
        self.killed: Set[str] = set()
        self.open: Dict[QueuedRequest, int] = {}
        self.settled: Set[QueuedRequest] = set()

    def take(self, actions: List[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                name = str(action.worker)
                assert name in self.idle, "only a free worker gets requests"
                assert 0 < len(action.requests) <= self.limits.batch_size
                assert all(each in self.open for each in action.requests)
                for each in action.requests:
                    self.open[each] += 1
                    assert self.open[each] <= 2, "at most two tries"
                self.idle.discard(name)
                self.busy[name] = list(action.requests)
            elif isinstance(action, Kill):
                self.killed.add(str(action.worker))
            else:
                self.settle(action.request)

    def settle(self, request: QueuedRequest) -> None:
        assert request in self.open and request not in self.settled
        self.settled.add(request)
        del self.open[request]

    @rule(size=st.sampled_from([1, 30 * 1024 * 1024]))
    def submit(self, size: int) -> None:
        request = QueuedRequest(size)
        self.open[request] = 0
        self.take(self.dispatcher.submit(request, self.now))

    @rule()
    def join(self) -> None:
        self.names += 1
        self.idle.add(f"w{self.names}")
        self.take(self.dispatcher.joined(f"w{self.names}", self.now))

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.busy)))
        given = self.busy[name]
        if name not in self.killed:
            self.idle.add(name)
            del self.busy[name]
        done, actions = self.dispatcher.answered(name, self.now)
        assert list(done) == ([] if name in self.killed else given)
        for request in done:
            if request in self.open:
                self.settle(request)
        self.take(actions)

    @precondition(lambda self: self.busy or self.idle)
    @rule(data=st.data(), unread=st.booleans())
    def lose(self, data: st.DataObject, unread: bool) -> None:
        name = data.draw(st.sampled_from(sorted({*self.busy, *self.idle})))
        self.idle.discard(name)
        for request in self.busy.pop(name, []):
            if unread and request in self.open:
                self.open[request] -= 1
        self.take(self.dispatcher.lost(name, self.now, unread))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.open)))
        self.settle(request)
        self.dispatcher.cancel(request)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.dispatcher.tick(self.now))

    @precondition(lambda self: self.now > 20)
    @rule(all_of_them=st.booleans())
    def close(self, all_of_them: bool) -> None:
        self.take(self.dispatcher.close(Rejection.CLOSED, waiting=all_of_them))

    @invariant()
    def counts_agree(self) -> None:
        assert self.dispatcher.unanswered == len(self.open)
        assert self.dispatcher.waiting == sum(t.state is RequestState.WAITING for t in self.open)
        assert self.dispatcher.workers == len(self.idle) + len(set(self.busy) - self.killed)

    @invariant()
    def no_request_waits_while_a_worker_is_idle(self) -> None:
        due = self.dispatcher.due()
        if self.idle and self.dispatcher.waiting:
            assert due is not None and due > self.now, "only for the delay of a batch"

    def teardown(self) -> None:
        """All requests end after their timeouts."""
        self.now += 2 * self.limits.timeout
        self.take(self.dispatcher.tick(self.now))
        self.take(self.dispatcher.abandon(Rejection.CLOSED))
        assert not self.open


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
