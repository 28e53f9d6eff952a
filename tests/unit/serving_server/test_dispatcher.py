"""The queue of a model: what workers get, and what callers are told, in any order of events."""

from typing import Dict, List, Set

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sagemaker_mxnet_serving.dispatcher import (
    Action,
    Dispatcher,
    Kill,
    Limits,
    Refusal,
    Refuse,
    Send,
    State,
    Ticket,
)


def tickets(count: int, size: int = 1) -> List[Ticket]:
    return [Ticket(size) for _ in range(count)]


def sent(actions: List[Action]) -> List[List[Ticket]]:
    return [list(each.tickets) for each in actions if isinstance(each, Send)]


def refused(actions: List[Action]) -> Dict[Ticket, Refusal]:
    return {each.ticket: each.refusal for each in actions if isinstance(each, Refuse)}


def test_requests_go_to_workers_in_the_order_in_which_they_came() -> None:
    dispatcher = Dispatcher(Limits())
    first, second, third = tickets(3)
    assert dispatcher.submit(first, 0) == []
    assert dispatcher.submit(second, 1) == []
    assert sent(dispatcher.joined("a", 2)) == [[first]]
    assert dispatcher.submit(third, 3) == []
    done, actions = dispatcher.answered("a", 4)
    assert (list(done), sent(actions)) == ([first], [[second]])


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    dispatcher = Dispatcher(Limits(queue_size=2))
    first, second, third = tickets(3)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    assert refused(dispatcher.submit(third, 0)) == {third: Refusal.QUEUE_FULL}
    assert sent(dispatcher.joined("a", 0) + dispatcher.joined("b", 0)) == [[first], [second]]


def test_a_request_whose_worker_died_is_tried_once_more_and_before_others() -> None:
    dispatcher = Dispatcher(Limits())
    first, second = tickets(2)
    dispatcher.joined("a", 0)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    assert dispatcher.lost("a", 1) == []
    assert sent(dispatcher.joined("b", 2)) == [[first]]
    assert refused(dispatcher.lost("b", 3)) == {first: Refusal.CRASHED}
    assert sent(dispatcher.joined("c", 4)) == [[second]]


def test_an_overdue_worker_is_killed_and_its_late_answer_is_nobodys() -> None:
    dispatcher = Dispatcher(Limits(timeout=10))
    (ticket,) = tickets(1)
    dispatcher.joined("a", 0)
    dispatcher.submit(ticket, 0)
    assert dispatcher.due() == 10
    assert dispatcher.tick(9.9) == []
    actions = dispatcher.tick(10)
    assert refused(actions) == {ticket: Refusal.OVERDUE}
    assert Kill("a") in actions
    assert dispatcher.answered("a", 11) == ((), [])
    assert dispatcher.workers == 0
    assert dispatcher.lost("a", 12) == [], "it is not tried again"


def test_a_request_that_no_worker_becomes_free_for_is_told_so() -> None:
    dispatcher = Dispatcher(Limits(timeout=10))
    first, second = tickets(2)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 5)
    assert refused(dispatcher.tick(10)) == {first: Refusal.WAITED}
    assert dispatcher.due() == 15


def test_a_batch_waits_for_others_and_no_longer_than_its_delay() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3, batch_delay=0.5))
    first, second, third, fourth = tickets(4)
    dispatcher.joined("a", 0)
    dispatcher.joined("b", 0)
    assert dispatcher.submit(first, 0) == []
    assert dispatcher.due() == 0.5
    assert dispatcher.submit(second, 0.1) == []
    assert sent(dispatcher.submit(third, 0.2)) == [[first, second, third]]
    assert dispatcher.submit(fourth, 1) == []
    assert sent(dispatcher.tick(1.5)) == [[fourth]]


def test_requests_that_waited_for_a_worker_go_together() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3))
    waiting = tickets(5)
    for ticket in waiting:
        dispatcher.submit(ticket, 0)
    assert sent(dispatcher.joined("a", 1)) == [waiting[:3]]
    assert sent(dispatcher.answered("a", 2)[1]) == [waiting[3:]]


def test_requests_go_alone_where_the_model_does_not_take_them_together() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3))
    dispatcher.batching = False
    waiting = tickets(2)
    for ticket in waiting:
        dispatcher.submit(ticket, 0)
    assert sent(dispatcher.joined("a", 1)) == [waiting[:1]]


def test_after_a_death_the_requests_of_a_batch_are_tried_one_by_one() -> None:
    dispatcher = Dispatcher(Limits(batch_size=3))
    batch = tickets(3)
    for ticket in batch:
        dispatcher.submit(ticket, 0)
    dispatcher.joined("a", 0)
    dispatcher.lost("a", 1)
    assert sent(dispatcher.joined("b", 2)) == [[batch[0]]]
    assert refused(dispatcher.lost("b", 3)) == {batch[0]: Refusal.CRASHED}
    assert sent(dispatcher.joined("c", 4)) == [[batch[1]]]
    assert sent(dispatcher.joined("d", 4)) == [[batch[2]]]


def test_what_a_killed_worker_had_does_not_go_to_one_that_is_killed_with_it() -> None:
    dispatcher = Dispatcher(Limits())
    (ticket,) = tickets(1)
    dispatcher.joined("a", 0)
    dispatcher.joined("b", 0)
    assert dispatcher.submit(ticket, 0) == [Send("b", (ticket,))]
    dispatcher.retire("a")
    dispatcher.retire("b")
    assert dispatcher.lost("b", 1) == []
    assert dispatcher.lost("a", 1) == []
    assert sent(dispatcher.joined("c", 2)) == [[ticket]]


def test_large_bodies_do_not_go_together() -> None:
    dispatcher = Dispatcher(Limits(batch_size=8))
    large = tickets(2, size=40 * 1024 * 1024)
    for ticket in large:
        dispatcher.submit(ticket, 0)
    assert sent(dispatcher.joined("a", 0)) == [[large[0]]]


def test_a_caller_that_went_away_costs_no_worker() -> None:
    dispatcher = Dispatcher(Limits())
    first, second = tickets(2)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    dispatcher.cancel(first)
    assert dispatcher.waiting == 1
    assert sent(dispatcher.joined("a", 1)) == [[second]]


def test_closing_answers_what_is_here_and_refuses_the_rest() -> None:
    dispatcher = Dispatcher(Limits())
    first, second, late = tickets(3)
    dispatcher.joined("a", 0)
    dispatcher.submit(first, 0)
    dispatcher.submit(second, 0)
    dispatcher.close(Refusal.CLOSED)
    assert refused(dispatcher.submit(late, 1)) == {late: Refusal.CLOSED}
    assert sent(dispatcher.answered("a", 2)[1]) == [[second]]
    assert refused(dispatcher.abandon(Refusal.CLOSED)) == {second: Refusal.CLOSED}
    assert dispatcher.unanswered == 0


def test_workers_may_come_while_they_are_counted() -> None:
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
        self.busy: Dict[str, List[Ticket]] = {}
        self.killed: Set[str] = set()
        self.open: Dict[Ticket, int] = {}
        self.settled: Set[Ticket] = set()

    def take(self, actions: List[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                name = str(action.worker)
                assert name in self.idle, "only a free worker gets requests"
                assert 0 < len(action.tickets) <= self.limits.batch_size
                assert all(each in self.open for each in action.tickets)
                for each in action.tickets:
                    self.open[each] += 1
                    assert self.open[each] <= 2, "tried twice at the most"
                self.idle.discard(name)
                self.busy[name] = list(action.tickets)
            elif isinstance(action, Kill):
                self.killed.add(str(action.worker))
            else:
                self.settle(action.ticket)

    def settle(self, ticket: Ticket) -> None:
        assert ticket in self.open and ticket not in self.settled
        self.settled.add(ticket)
        del self.open[ticket]

    @rule(size=st.sampled_from([1, 30 * 1024 * 1024]))
    def submit(self, size: int) -> None:
        ticket = Ticket(size)
        self.open[ticket] = 0
        self.take(self.dispatcher.submit(ticket, self.now))

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
        for ticket in done:
            if ticket in self.open:
                self.settle(ticket)
        self.take(actions)

    @precondition(lambda self: self.busy or self.idle)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({*self.busy, *self.idle})))
        self.idle.discard(name)
        self.busy.pop(name, None)
        self.take(self.dispatcher.lost(name, self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(list(self.open)))
        self.settle(ticket)
        self.dispatcher.cancel(ticket)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.dispatcher.tick(self.now))

    @precondition(lambda self: self.now > 20)
    @rule(all_of_them=st.booleans())
    def close(self, all_of_them: bool) -> None:
        self.take(self.dispatcher.close(Refusal.CLOSED, waiting=all_of_them))

    @invariant()
    def counts_agree(self) -> None:
        assert self.dispatcher.unanswered == len(self.open)
        assert self.dispatcher.waiting == sum(t.state is State.WAITING for t in self.open)
        assert self.dispatcher.workers == len(self.idle) + len(set(self.busy) - self.killed)

    @invariant()
    def nobody_waits_beside_a_free_worker(self) -> None:
        due = self.dispatcher.due()
        if self.idle and self.dispatcher.waiting:
            assert due is not None and due > self.now, "only for the delay of a batch"

    def teardown(self) -> None:
        """Whatever is under way ends with time, and nobody is left without an answer."""
        self.now += 2 * self.limits.timeout
        self.take(self.dispatcher.tick(self.now))
        self.take(self.dispatcher.abandon(Refusal.CLOSED))
        assert not self.open


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
