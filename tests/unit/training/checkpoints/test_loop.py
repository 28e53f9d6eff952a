"""However a script writes its loops, an interrupted run trains what plain Python loops train."""

import itertools
import json
import queue
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_training.checkpoints import CheckpointError, job_environment, resume, storage
from sagemaker_mxnet_training.checkpoints.manager import CheckpointManager
from sagemaker_mxnet_training.checkpoints.schedule import Schedule
from sagemaker_mxnet_training.checkpoints.training_state import TrainingState


class Killed(BaseException):
    """The process ends here."""


class Weights(TrainingState):
    """Weights that are the list of what they were trained with, one entry for each step."""

    kvstore, update_on_kvstore, started = None, False, True

    def __init__(self, job: job_environment.JobEnvironment) -> None:
        super().__init__(job)
        self.trained: List[List[str]] = []

    def capture(self) -> Any:
        return [("weights", [json.dumps(self.trained).encode()])]

    def synchronize(self) -> None:
        pass


class Process:
    """A process that trains, until it ends by itself or is killed at a given moment.

    Args:
        directory: of its checkpoints; ``None`` for plain Python loops.
        every: steps between checkpoints.
        lives: moments that it lives; ``None`` for ever.
        asked: whether it is asked to stop then, rather than killed.
    """

    def __init__(
        self,
        directory: Optional[str] = None,
        every: int = 1,
        lives: Optional[int] = None,
        asked: bool = False,
    ) -> None:
        self.lives, self.asked = lives, asked
        self.gradients: List[str] = []
        self.manager: Optional[CheckpointManager] = None
        job = job_environment.read({"SM_HOSTS": '["a"]', "SM_CURRENT_HOST": "a"}, directory)
        self.weights = Weights(job)
        if directory is None:
            return
        storage.unlock()
        self.manager = CheckpointManager(job, Schedule(every, time.monotonic()), 2, None)
        self.manager.training = self.weights
        checkpoint = resume.find(job, lambda: None)
        if checkpoint is not None:
            with checkpoint:
                self.weights.trained = json.loads(checkpoint.read("weights"))
                self.manager.resume(checkpoint)

    def epochs(self, count: int) -> Iterator[int]:
        return iter(range(count)) if self.manager is None else self.manager.epochs(count)

    def batches(self, data: Sequence[str]) -> Iterator[str]:
        return iter(data) if self.manager is None else self.manager.batches(data)

    def moment(self) -> None:
        if self.lives is None or self.manager is None:
            return
        self.lives -= 1
        if self.lives == 0 and self.asked:
            self.manager._stop.number = signal.SIGTERM
        elif self.lives == 0:
            raise Killed

    def step(self) -> None:
        self.moment()
        self.weights.trained.append(self.gradients)
        self.gradients = []
        if self.manager is not None:
            self.manager.loop.trainer_stepped()
            self.manager._writer.join()  # a due checkpoint is left out while another is written
        self.moment()


@dataclass(frozen=True)
class Pass:
    """A loop over batches.

    Attributes:
        length: batches that there are.
        accumulate: batches whose gradients are accumulated; 0 for validation, without a step.
        skip: of three batches, which is not trained; 3 for none.
        leave_at: number of the batch at which the loop is left.
        leave_after: whether it is left after training this batch, or before.
        style: how it is written.
    """

    length: int
    accumulate: int
    skip: int
    leave_at: Optional[int]
    leave_after: bool
    style: str


def as_for(batches: Iterator[str]) -> Iterator[str]:
    yield from batches


def as_list(batches: Iterator[str]) -> Iterator[str]:
    yield from list(batches)


def as_enumerate(batches: Iterator[str]) -> Iterator[str]:
    for _, batch in enumerate(batches):
        yield batch


def as_next(batches: Iterator[str]) -> Iterator[str]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch


STYLES: Dict[str, Callable[[Iterator[str]], Iterator[str]]] = {
    "for": as_for,
    "list": as_list,
    "enumerate": as_enumerate,
    "next": as_next,
}


def play_pass(process: Process, name: str, each: Pass) -> None:
    """Train a pass. What it does with a batch follows from the batch alone."""
    data = [f"{name}.{number}" for number in range(each.length)]
    for batch in STYLES[each.style](process.batches(data)):
        process.moment()
        number = int(batch.rpartition(".")[2])
        leaves = number == each.leave_at
        if leaves and not each.leave_after:
            break
        if each.accumulate and number % 3 != each.skip:
            process.gradients.append(batch)
            if (number + 1) % each.accumulate == 0:
                process.step()
        if leaves:
            break


def play(process: Process, own_loop: bool, passes: Sequence[Sequence[Pass]]) -> None:
    """Train all: the passes of each epoch, or each pass in a loop of the script's own."""
    if own_loop:
        for number, each in enumerate(each for epoch in passes for each in epoch):
            play_pass(process, str(number), each)
    else:
        for epoch in process.epochs(len(passes)):
            for number, each in enumerate(passes[epoch]):
                play_pass(process, f"{epoch}.{number}", each)


def known(each: Pass) -> bool:
    """Return whether it can be known which batches are trained.

    Not from one gradient of a list, and not of a batch with a gradient at which the loop is left
    before a step.
    """
    if each.style == "list" and each.accumulate > 1:
        return False
    if each.leave_at is None or each.leave_at >= each.length or not each.leave_after:
        return True
    has_gradient = each.accumulate > 0 and each.leave_at % 3 != each.skip
    return not has_gradient or (each.leave_at + 1) % each.accumulate == 0


PASS = st.builds(
    Pass,
    length=st.integers(0, 6),
    accumulate=st.integers(0, 3),
    skip=st.integers(0, 3),
    leave_at=st.none() | st.integers(0, 5),
    leave_after=st.booleans(),
    style=st.sampled_from(sorted(STYLES)),
).filter(known)


@settings(max_examples=100, deadline=None)
@given(
    own_loop=st.booleans(),
    passes=st.lists(st.lists(PASS, min_size=1, max_size=3), min_size=1, max_size=3),
    every=st.integers(1, 3),
    ends=st.lists(st.tuples(st.integers(1, 25), st.booleans()), max_size=3),
)
def test_interrupted_loop_trains_what_plain_loops_train(
    own_loop: bool,
    passes: Sequence[Sequence[Pass]],
    every: int,
    ends: Sequence[Tuple[int, bool]],
) -> None:
    plain = Process()
    play(plain, own_loop, passes)
    with tempfile.TemporaryDirectory() as directory:
        for lives, asked in (*ends, (None, False)):
            process = Process(directory, every, lives, asked)
            try:
                play(process, own_loop, passes)
            except Killed:
                assert not asked
            except SystemExit as left:
                assert asked and left.code == 128 + signal.SIGTERM
            finally:
                assert process.manager is not None
                process.manager._writer.join()
        assert process.weights.trained == plain.weights.trained


def nested(process: Process) -> None:
    for _ in process.batches("abc"):
        process.step()
        for _ in process.batches("def"):
            process.step()


def two_at_once(process: Process) -> None:
    for _ in zip(process.batches("abc"), process.batches("def")):
        process.step()


def held(process: Process) -> None:
    first = process.batches("abc")
    next(first)
    for _ in process.batches("def"):
        process.step()


def of_an_epoch_before(process: Process) -> None:
    batches = None
    for _ in process.epochs(2):
        batches = batches or process.batches("abc")
        next(batches)
        process.step()


def after_the_epochs(process: Process) -> None:
    for _ in process.epochs(1):
        for _ in process.batches("abc"):
            process.step()
    for _ in process.batches("def"):
        process.step()


def before_the_epochs(process: Process) -> None:
    for _ in process.batches("abc"):
        process.step()
    for _ in process.epochs(2):
        process.step()


def epochs_in_a_list(process: Process) -> None:
    for _ in list(process.epochs(2)):
        for _ in process.batches("abc"):
            process.step()


def epochs_in_epochs(process: Process) -> None:
    for _ in process.epochs(2):
        for _ in process.epochs(2):
            process.step()


def epochs_counted_anew(process: Process) -> None:
    for _ in range(2):
        for _ in process.epochs(3):
            process.step()


def loaded_by_a_thread(process: Process) -> None:
    loaded: queue.Queue[Optional[str]] = queue.Queue()

    def load() -> None:
        for batch in process.batches("abc"):
            loaded.put(batch)
        loaded.put(None)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        while loaded.get() is not None:
            process.step()
    finally:
        thread.join()


@pytest.mark.parametrize(
    "script",
    [
        nested,
        two_at_once,
        held,
        of_an_epoch_before,
        after_the_epochs,
        before_the_epochs,
        epochs_in_a_list,
        epochs_in_epochs,
        epochs_counted_anew,
        loaded_by_a_thread,
    ],
)
def test_loop_that_would_lose_batches_is_an_error(
    tmp_path: Any, script: Callable[[Process], None]
) -> None:
    with pytest.raises(CheckpointError, match=r"^(batches|epochs)(:|\()"):
        script(Process(str(tmp_path)))


def test_generator_that_is_left_ends_with_its_epoch(tmp_path: Any) -> None:
    process = Process(str(tmp_path))
    kept = []
    for _ in process.epochs(2):
        kept.append(process.batches("abc"))
        next(kept[-1])
        process.step()
    assert process.manager is not None and process.manager.loop.step == 2


def test_more_epochs_may_follow(tmp_path: Any) -> None:
    process = Process(str(tmp_path))
    for count in (1, 3):
        for epoch in process.epochs(count):
            for _ in process.batches([str(epoch)]):
                process.gradients.append(str(epoch))
                process.step()
    assert process.weights.trained == [["0"], ["1"], ["2"]]


def test_epochs_left_by_break_are_reported(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    process = Process(str(tmp_path), every=1000)
    for _ in process.epochs(2):
        for _ in process.batches("abc"):
            process.step()
        break
    assert "epochs: the loop was left after step 3" in caplog.text
    assert process.manager is not None
    process.manager.save()
    assert Process(str(tmp_path)).weights.trained == process.weights.trained


class Resettable:
    """An iterator of its own data, as ``mx.io.DataIter`` is one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.left = list("abc")

    def __iter__(self) -> "Resettable":
        return self

    def __next__(self) -> str:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


@pytest.mark.parametrize("data", [iter("abc"), Resettable()], ids=["iterator", "DataIter"])
def test_iterator_that_is_used_up_is_an_error(tmp_path: Any, data: Any) -> None:
    """Whichever epochs follow would train nothing, in this run; in a resumed run they would."""
    process = Process(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^batches: no data in epoch 1, since .*reset\(\)"):
        for _ in process.epochs(2):
            for _ in process.manager.batches(data):  # type: ignore[union-attr]
                process.step()
    assert process.manager is not None and process.manager.loop.step == 3


def test_iterator_that_is_reset_may_be_used_again(tmp_path: Any) -> None:
    process, data = Process(str(tmp_path)), Resettable()
    for _ in process.epochs(2):
        data.reset()
        for _ in process.manager.batches(data):  # type: ignore[union-attr]
            process.step()
    assert process.manager is not None and process.manager.loop.step == 6


def test_data_without_a_batch_is_reported(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    process, stream = Process(str(tmp_path)), iter("abc")
    for _ in process.epochs(2):
        for _ in process.manager.batches(itertools.islice(stream, 3)):  # type: ignore[union-attr]
            process.step()
    assert "the data of epoch 1 has no batches, so it trains nothing; check that" in caplog.text
