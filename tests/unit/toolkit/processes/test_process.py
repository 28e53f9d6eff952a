"""Children, with real ones: started, heard, signalled and reaped; and the table that keeps them."""

import contextlib
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Tuple

import psutil
import pytest

from sagemaker_mxnet_toolkit.failure import Role, StartError
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import process
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec, StderrTail
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from tests.support.jobs import eventually
from tests.support.leaks import no_leaks


def spec(code: str, **more: Any) -> ProcessSpec:
    argv = (sys.executable, "-u", "-c", code)
    return ProcessSpec(Role.WORKER, "worker", argv, dict(os.environ), **more)


@contextlib.contextmanager
def running(code: str, **more: Any) -> Iterator[Child]:
    child = process.spawn(spec(code, **more))
    try:
        yield child
    finally:
        child.signal(signal.SIGKILL)
        eventually(lambda: child.poll() is not None, "the end of the child")
        child.close()


def ended(child: Child) -> int:
    eventually(lambda: child.poll() is not None, "the end of the child")
    assert child.returncode is not None
    return child.returncode


@pytest.mark.parametrize(
    ("code", "returncode"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)],
)
def test_returncode(code: str, returncode: int) -> None:
    with running(code) as child:
        assert ended(child) == returncode
        assert child.poll() == returncode, "again"


def test_start_without_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with no_leaks():
        with pytest.raises(StartError, match="limit on processes and threads is reached"):
            process.spawn(spec("import time; time.sleep(600)"))


@pytest.mark.parametrize("free", range(5))
def test_start_without_open_files(free: int) -> None:
    """Two pipes and their ends are opened one after another."""
    # CPython 3.8 and 3.9 leave a pipe open themselves when the next one fails (gh-87474).
    with no_leaks() if sys.version_info >= (3, 10) else contextlib.nullcontext():
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, limits[1]))
        for _ in range(free):
            os.close(taken.pop())
        try:
            with pytest.raises(StartError, match="limit on open files is reached"):
                process.spawn(spec("pass"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for each in taken:
                os.close(each)


def test_child_leads_a_session_and_has_what_its_spec_says(tmp_path: Path) -> None:
    code = (
        "import os, sys; print(os.getsid(0), os.getcwd(), sys.stdin.read() == '', file=sys.stderr)"
    )
    with running(code, directory=str(tmp_path)) as child:
        ended(child)
        child.stderr.finish(5)
        assert child.stderr.text() == f"{child.pid} {tmp_path} True"


def test_held_child_ends_when_it_is_close_stdin() -> None:
    with running("import sys; sys.stdin.read()", stdin_open=True) as child:
        assert child.poll() is None
        child.close_stdin()
        child.close_stdin()
        assert ended(child) == 0


@pytest.mark.parametrize(
    ("argv", "directory", "told"),
    [
        (("/no/such/program",), "/", "/no/such/program: No such file or directory"),
        (("/dev/null",), "/", "/dev/null: Permission denied"),
        ((sys.executable,), "/no/such/place", "/no/such/place: No such file or directory"),
    ],
)
def test_a_child_that_cannot_be_started(argv: Tuple[str, ...], directory: str, told: str) -> None:
    """The error names what is missing, and no descriptor is left open."""
    with no_leaks():
        with pytest.raises(StartError, match=told):
            process.spawn(ProcessSpec(Role.WORKER, "worker", argv, {}, directory))


EVENTS = r"""
import os
fd = int(os.environ["SAGEMAKER_MXNET_REPORT_FD"])
os.write(fd, b'{"event": "started"}\n[1]\nno json\n{"no": "event"}\n{"event": "failed", "rea')
os.write(fd, b'son": "boom"}\n{"event": 3}\n' + b"[" * 100000 + b'\n{"event": "torn')
"""


def test_events_arrive_and_what_is_no_event_is_passed_over() -> None:
    with running(EVENTS) as child:
        heard: List[Mapping[str, Any]] = []
        eventually(
            lambda: heard.extend(child.events()) or child.report_closed, "the end of the report"
        )
        assert heard == [{"event": "started"}, {"event": "failed", "reason": "boom"}]
        assert child.failure == heard[1]


def test_stop_and_continue_are_noticed() -> None:
    with running("import time; time.sleep(60)") as child:
        os.kill(child.pid, signal.SIGSTOP)
        eventually(lambda: child.poll() is None and child.frozen_since, "SIGSTOP being noticed")
        os.kill(child.pid, signal.SIGCONT)
        eventually(lambda: child.poll() is None and not child.frozen_since, "SIGCONT")


def test_signal_wakes_a_stopped_child_up() -> None:
    with running("import time; time.sleep(60)") as child:
        os.kill(child.pid, signal.SIGSTOP)
        eventually(lambda: child.poll() is None and child.frozen_since, "SIGSTOP being noticed")
        child.signal(signal.SIGTERM)
        assert ended(child) == -signal.SIGTERM


# The end of stderr.


@contextlib.contextmanager
def tail(tmp_path: Path) -> Iterator[Tuple[StderrTail, int, Path]]:
    read_end, write_end = os.pipe()
    sink = os.open(tmp_path / "sink", os.O_WRONLY | os.O_CREAT)
    try:
        yield StderrTail(read_end, sink), write_end, tmp_path / "sink"
    finally:
        os.close(sink)


def test_tail_keeps_whole_lines_of_the_end_and_passes_all_on(tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % number for number in range(100000))
    with tail(tmp_path) as (kept, write_end, sink):
        view = memoryview(data)
        while view:
            view = view[os.write(write_end, view) :]
        os.close(write_end)
        eventually(lambda: sink.stat().st_size == len(data), "all being passed on")
        assert sink.read_bytes() == data
        text = kept.text()
        assert len(text) <= 16 * 1024
        assert text.startswith("line ")
        assert text.endswith("line 99999")
        assert all(line.startswith("line ") for line in text.splitlines())


def test_tail_keeps_the_last_state_of_a_progress_bar(tmp_path: Path) -> None:
    with tail(tmp_path) as (kept, write_end, sink):
        data = b" 10%\r 20%\r100%\r\nValueError: \xff\n"
        os.write(write_end, data)
        os.close(write_end)
        eventually(lambda: sink.read_bytes() == data, "all being passed on")
        assert kept.text() == "100%\nValueError: \ufffd"


def test_finish_returns_while_a_grandchild_holds_the_pipe(tmp_path: Path) -> None:
    with tail(tmp_path) as (kept, write_end, sink):
        os.write(write_end, b"last words\n")
        kept.finish(5)
        assert sink.read_bytes() == b"last words\n"
        os.close(write_end)


# Below us.


def test_descendants_are_found_without_those_of_others() -> None:
    code = "import subprocess; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", code]) as ours:
        try:
            own = psutil.Process(ours.pid)
            eventually(own.children, "the grandchild")
            found = {each.pid for each in process.descendants()}
            assert {ours.pid, own.children()[0].pid} <= found
            assert not {ours.pid, own.children()[0].pid} & {
                each.pid for each in process.descendants(excluding=[ours.pid])
            }
        finally:
            for each in [*own.children(), own]:
                each.kill()


def test_children_are_noticed_without_a_look_at_all_processes() -> None:
    with subprocess.Popen(["sleep", "60"]) as ours, subprocess.Popen(["sleep", "60"]) as other:
        try:
            assert not process.childless()
            assert not process.childless([ours.pid])
            others = {each.pid for each in psutil.Process().children()}
            assert process.childless(others)
            ours.kill()
            os.waitid(os.P_PID, ours.pid, os.WEXITED | os.WNOWAIT)
            assert not process.childless(others - {ours.pid}), "not reaped yet"
        finally:
            ours.kill()
            other.kill()


def test_signals_that_were_sent_are_remembered_once() -> None:
    """SIGKILL is repeated until nothing of the group is left."""
    with running("import signal; signal.pause()") as child:
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            child.signal(number)
        child.signal(signal.SIGKILL, leader_only=True)
        assert [number for _, number in child.signals] == [signal.SIGTERM, signal.SIGKILL]
        assert child.started <= child.signals[0][0] <= child.signals[1][0]


def test_signal_to_the_rest_of_a_group_is_not_one_to_the_child() -> None:
    with running("pass") as child:
        eventually(lambda: child.poll() is not None, "the end of the child")
        child.signal(signal.SIGKILL)
        assert child.signals == []


LISTEN = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], file=sys.stderr, flush=True)
caller, _ = server.accept()
time.sleep(60)
"""


def test_callers_are_noticed() -> None:
    with running(LISTEN) as child:
        port = int(eventually(child.stderr.text, "the port"))
        assert not process.has_callers(child.pid)
        with socket.create_connection(("127.0.0.1", port)):
            eventually(lambda: process.has_callers(child.pid), "the caller being noticed")
    assert not process.has_callers(child.pid), "gone"


# The table.


class Desk:
    """A table with what it reports, and a loop that is turned by hand."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.events: List[Mapping[str, object]] = []
        self.exits: Dict[int, int] = {}
        self.table = ProcessTable(
            self.selector, lambda _, event: self.events.append(event), self._exit
        )

    def _exit(self, child: Child) -> None:
        assert child.returncode is not None
        self.exits[child.pid] = child.returncode

    def turn(self) -> "Desk":
        for key, mask in self.selector.select(0):
            key.data(mask)
        self.table.poll(time.monotonic())
        return self

    def until(self, children: List[Child]) -> None:
        eventually(lambda: all(child.pid in self.turn().exits for child in children), "all exits")


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.table.kill()
    eventually(lambda: not desk.turn().table.living(), "the end of all children")
    eventually(lambda: desk.table.sweep(time.monotonic(), 0.0), "the end of what is left")
    desk.selector.close()


def test_table_hears_the_last_event_before_the_exit(desk: Desk) -> None:
    child = desk.table.start(spec(EVENTS))
    assert desk.table.living() == [child]
    assert desk.table.living(Role.SERVER) == []
    desk.until([child])
    assert desk.events[-1] == {"event": "failed", "reason": "boom"}
    assert desk.table.living() == []


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("grace", "returncode"), [(0.2, -9), (30.0, -15)])
def test_stop_asks_first_and_then_kills(desk: Desk, grace: float, returncode: int) -> None:
    code = STUBBORN if returncode == -9 else STUBBORN.replace("SIG_IGN", "SIG_DFL")
    child = desk.table.start(spec(code))
    eventually(lambda: "up" in child.stderr.text(), "the child")
    desk.table.stop([child], signal.SIGTERM, grace)
    assert child.stopped
    desk.until([child])
    assert desk.exits[child.pid] == returncode


def test_the_earlier_deadline_counts(desk: Desk) -> None:
    child = desk.table.start(spec(STUBBORN))
    eventually(lambda: "up" in child.stderr.text(), "the child")
    desk.table.stop([child], signal.SIGTERM, 0.0)
    desk.table.stop([child], signal.SIGTERM, 1000.0)
    desk.until([child])
    assert desk.exits[child.pid] == -9


GROUP = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(60)
"""
CHECKPOINT = """
import signal, sys, time
def stop(*_):
    time.sleep(0.5)
    open({path!r}, "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print("up", file=sys.stderr, flush=True)
time.sleep(60)
"""


def test_a_stopped_child_lives_until_its_group_is_gone(desk: Desk, tmp_path: Path) -> None:
    """Its child processes may still be writing a checkpoint."""
    path = str(tmp_path / "checkpoint")
    child = desk.table.start(spec(GROUP.format(child=CHECKPOINT.format(path=path))))
    eventually(lambda: "up" in child.stderr.text(), "the grandchild")
    desk.table.stop([child], signal.SIGTERM, 30.0)
    desk.until([child])
    assert os.path.exists(path)


LOADER = """
import sys, time
print("up", file=sys.stderr, flush=True)
time.sleep(60)
"""
LAST_STEP = """
import signal, subprocess, sys, time
loader = subprocess.Popen([sys.executable, "-c", {child!r}])
def stop(*_):
    time.sleep(0.3)
    print("loader", loader.poll(), file=sys.stderr, flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, stop)
time.sleep(60)
"""


def test_what_a_child_has_started_is_asked_after_it(desk: Desk) -> None:
    child = desk.table.start(spec(LAST_STEP.format(child=LOADER)))
    eventually(lambda: "up" in child.stderr.text(), "the grandchild")
    desk.table.stop([child], signal.SIGTERM, 30.0, leader_first=True)
    desk.until([child])
    assert "loader None" in child.stderr.text()
    assert desk.exits[child.pid] == 0
    eventually(lambda: desk.table.sweep(time.monotonic(), 30.0), "nothing is left")


def test_sweep_leaves_what_living_children_have_started(desk: Desk) -> None:
    child = desk.table.start(spec(GROUP.format(child=LOADER)))
    eventually(lambda: "up" in child.stderr.text(), "the grandchild")
    assert desk.table.sweep(time.monotonic(), 0.0)
    assert desk.table.sweep(time.monotonic() + 1.0, 0.0)
    (grandchild,) = psutil.Process(child.pid).children()
    assert grandchild.status() != psutil.STATUS_ZOMBIE


def test_sweep_ends_daemons_and_leaves_what_was_there_before(tmp_path: Path) -> None:
    """In a separate process, because a subreaper adopts the orphans of other tests."""
    code = f"""
import selectors, signal, subprocess, sys, time, os
from sagemaker_mxnet_toolkit.processes import own_process
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
before = subprocess.Popen(["sleep", "60"])
own_process.become_subreaper()
ended = []
table = ProcessTable(selectors.DefaultSelector(), lambda *_: None, ended.append)
disowned = subprocess.Popen(["sleep", "60"])
table.exclude(disowned.pid)
daemon = "setsid sh -c 'trap : TERM; touch {tmp_path}/up; while true; do sleep 0.05; done' &"
table.start(ProcessSpec(Role.WORKER, "worker", ("/bin/sh", "-c", daemon), dict(os.environ)))
while not (ended and os.path.exists("{tmp_path}/up")):
    table.poll(time.monotonic())
    time.sleep(0.01)
assert not table.sweep(time.monotonic(), 0.2), "a daemon is there"
while not table.sweep(time.monotonic(), 0.2):
    time.sleep(0.01)
assert before.poll() is None and disowned.poll() is None
before.kill(), disowned.kill()
assert before.wait() == disowned.wait() == -9, "reaped by nobody else"
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "done\n", done.stderr


# The log.


def said(tmp_path: Path, *lines: Tuple[str, int], level: int = 20) -> List[str]:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log = Log("algo-1", level, frozenset(["swordfish-1"]), fd)
    for text, weight in lines:
        log("worker", text, weight)
    log.close()
    os.close(fd)
    return (tmp_path / "log").read_text().splitlines()


def test_log_lines_carry_host_role_and_level(tmp_path: Path) -> None:
    lines = said(tmp_path, ("started", 20), ("odd", 30), ("the key is swordfish-1", 40), ("x", 10))
    heads = [line.split(" ", 2)[2] for line in lines]
    assert heads == [
        "algo-1 worker: started",
        "algo-1 worker: WARNING: odd",
        "algo-1 worker: ERROR: the key is ***",
    ]
    assert all(line.startswith("[sagemaker-mxnet-training] ") for line in lines)


def test_every_line_of_a_text_is_marked_as_ours(tmp_path: Path) -> None:
    lines = said(tmp_path, ("one\ntwo", 20))
    assert lines[1] == "[sagemaker-mxnet-training]   two"


def test_level_drops_what_is_below(tmp_path: Path) -> None:
    assert said(tmp_path, ("started", 20), ("odd", 30), level=40) == []


def test_stalled_reader_blocks_neither_log_nor_exit() -> None:
    """A full pipe without a reader: logging, closing and Python's exit return."""
    code = """
import os
from sagemaker_mxnet_toolkit.log import Log
read_end, write_end = os.pipe()
log = Log("algo-1", fd=write_end)
for _ in range(2000):
    log("worker", "x" * 1000)
log.close()
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_log_without_a_thread_writes_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    def start(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    (line,) = said(tmp_path, ("started", 20))
    assert line.endswith("algo-1 worker: started")
