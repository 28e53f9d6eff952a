"""Child processes of one host: how they are started, read, signalled and reaped.

Every child leads a session of its own, so that a signal to its process group reaches what it
started, and a terminal's Ctrl-C reaches only the supervisor, which decides. The supervisor is a
subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): a grandchild that daemonises comes back to it.
"""

import array
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import termios
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Collection, Dict, Iterator, List, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.errors import StartError
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import write_all
from sagemaker_mxnet_toolkit.processes import child_report

if TYPE_CHECKING:
    import psutil

_PR_SET_CHILD_SUBREAPER = 36
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ from CPython 3.10 on
# Linux's asm-generic/siginfo.h; in os from CPython 3.9 on only.
_CLD_KILLED = 2
_CLD_STOPPED = 5
_TAIL_BYTES = 16 * 1024
_REPORT_BYTES = 256 * 1024


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start: plain data, made by ``plan`` without starting anything.

    Attributes:
        role: what it is for.
        name: how it is called in logs; unique on its host.
        argv: program and arguments; never a shell line.
        environment: its whole environment.
        directory: its working directory.
        stdin_open: its stdin is a pipe that stays open until ``Child.close_stdin``; otherwise it
            is empty.
        inherited: file descriptors of ours that it has too, under the same numbers.
    """

    role: Role
    name: str
    argv: Tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    directory: str = "/"
    stdin_open: bool = False
    inherited: Tuple[int, ...] = ()


class StderrTail:
    """Passes a child's stderr on, byte for byte and at once, and remembers its end.

    A thread does the copying: a reader of our stderr that stalls must stall the script that
    writes, as it would without us, and never the supervisor. Memory is bounded by
    ``_TAIL_BYTES``.
    """

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._tail = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, name="stderr", daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                block = os.read(self._source, 65536)
                if not block:
                    break
                with self._lock:
                    self._tail += block
                    del self._tail[:-_TAIL_BYTES]
                # When nobody reads our stderr any more, the script must not notice.
                write_all(self._sink, block)
        os.close(self._source)

    def finish(self, timeout: float) -> None:
        """Wait, ``timeout`` seconds at the most, until all that was written has been passed on."""
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.01)
            waiting = array.array("i", [0])
            try:
                fcntl.ioctl(self._source, termios.FIONREAD, waiting)
            except OSError:
                return
            if waiting[0] == 0:
                # What left the pipe may still be on its way to the sink: one more turn.
                self._thread.join(0.01)
                return

    def text(self) -> str:
        """Return the last whole lines, as text."""
        with self._lock:
            data = bytes(self._tail)
        if len(data) == _TAIL_BYTES:
            data = data[data.find(b"\n") + 1 :]
        # A progress bar writes one line many times over; only its last state is worth keeping.
        lines = data.decode("utf-8", "replace").split("\n")
        return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines).strip("\n")


class Child:
    """A running child process and what it has reported.

    Attributes:
        spec: what was asked for.
        pid: its process id, which is also its process group and session.
        returncode: ``None`` while it runs; -N after death by signal N.
        frozen_since: when it was suspended by a signal such as SIGSTOP (monotonic), or ``None``.
        failure: the last ``failed`` event it reported, if any.
        failed_at: when it first reported one (monotonic, seconds), or ``None``.
        stopped: whether it was asked to end, so that its end is expected.
        report_closed: whether the child has closed its end of the report's pipe.
        started: when it was started (monotonic, seconds).
        signals: what it was sent: when (monotonic, seconds), and the signal's number.
    """

    def __init__(self, spec: ProcessSpec, popen: "subprocess.Popen[bytes]", report: int) -> None:
        self.spec = spec
        self.pid = popen.pid
        self.returncode: Optional[int] = None
        self.frozen_since: Optional[float] = None
        self.failure: Optional[Mapping[str, Any]] = None
        self.failed_at: Optional[float] = None
        self.stopped = False
        self.report_closed = False
        self.started = time.monotonic()
        self.signals: List[Tuple[float, int]] = []
        self.stderr = StderrTail(_take_stderr(popen), 2)
        self.report = report
        self._popen = popen
        self._line = b""

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Read what the child has reported so far. A line that is no event is ignored."""
        while True:
            try:
                block = os.read(self.report, 65536)
            except OSError:
                return
            if not block:
                self.report_closed = True
                return
            *lines, self._line = (self._line + block).split(b"\n")
            self._line = self._line[:_REPORT_BYTES]
            for line in lines:
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    if event["event"] == "failed":
                        self.failure = event
                        self.failed_at = self.failed_at or time.monotonic()
                    yield event

    def poll(self) -> Optional[int]:
        """Reap the child if it has ended; notice whether it is stopped. Return its returncode."""
        if self.returncode is not None:
            return self.returncode
        flags = os.WNOHANG | os.WEXITED | os.WSTOPPED | os.WCONTINUED
        while True:
            try:
                info = os.waitid(os.P_PID, self.pid, flags)
            except ChildProcessError:  # somebody else in this process reaped it
                self.returncode = self._popen.returncode = 255
                break
            if info is None:
                break
            if info.si_code == _CLD_STOPPED:
                self.frozen_since = time.monotonic()
            elif info.si_code == os.CLD_CONTINUED:
                self.frozen_since = None
            elif info.si_code in (os.CLD_EXITED, _CLD_KILLED, os.CLD_DUMPED):
                died = info.si_code != os.CLD_EXITED
                self.returncode = -info.si_status if died else info.si_status
                # subprocess must know too, or it would wait for a process id that is free again.
                self._popen.returncode = self.returncode
                break
        return self.returncode

    def signal(self, number: int, leader_only: bool = False) -> None:
        """Send a signal to the child's process group, and wake it up if it is stopped.

        Args:
            number: the signal.
            leader_only: whether to send it to the process itself, and to nothing else of its group.
        """
        self._note(number)
        send = os.kill if leader_only else os.killpg
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(self.pid, number)
            if number != signal.SIGKILL:
                send(self.pid, signal.SIGCONT)

    def _note(self, number: int) -> None:
        # SIGKILL is repeated until the whole group is gone; once tells it all.
        if not self.signals or self.signals[-1][1] != number:
            self.signals.append((time.monotonic(), number))

    def write_stdin(self, data: bytes) -> bool:
        """Write a line to the child's stdin and close it; return whether it could be written.

        The child need not read it yet: the pipe takes all of it, up to the system's limit.
        """
        if self._popen.stdin is None or self._popen.stdin.closed:
            return False
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._popen.stdin.fileno(), _F_SETPIPE_SZ, max(len(data), 65536))
        try:
            self._popen.stdin.write(data)
            self._popen.stdin.close()
        except OSError:
            return False
        return True

    def close_stdin(self) -> None:
        """Close the pipe to the child's stdin, if there is one."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def close(self) -> None:
        """Close all pipes to the child."""
        self.close_stdin()
        os.close(self.report)


def _take_stderr(popen: "subprocess.Popen[bytes]") -> int:
    assert popen.stderr is not None
    fd = os.dup(popen.stderr.fileno())
    popen.stderr.close()
    return fd


def spawn(spec: ProcessSpec) -> Child:
    """Start a child process.

    Its stdout is ours, so that nothing stands between a script and its reader; its stderr passes
    through ``StderrTail``; it gets a pipe to report on (see ``child_report``).

    Raises:
        StartError: the program is missing, may not be executed, or the system is out of processes.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    environment = {**spec.environment, child_report.FD_VARIABLE: str(write_end)}
    try:
        popen = subprocess.Popen(
            spec.argv,
            env=environment,
            cwd=spec.directory,
            stdin=subprocess.PIPE if spec.stdin_open else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(write_end, *spec.inherited),
            start_new_session=True,
        )
    except OSError as error:
        os.close(read_end)
        where = spec.directory if not os.path.isdir(spec.directory) else spec.argv[0]
        raise StartError(f"cannot start {where}: {error.strerror or error}") from error
    finally:
        os.close(write_end)
    return Child(spec, popen, read_end)


def own_start() -> float:
    """Return when this process was started (monotonic, seconds; proc(5), ``starttime``).

    A program that took this process over with exec(3) was started when that process was.
    """
    now = time.monotonic()
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as file:
            # The second field is the program's name, in parentheses and with whatever is in it.
            fields = file.read().rsplit(b")", 1)[1].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    return now


def become_subreaper() -> None:
    """Make orphaned descendants of this process its children (Linux 3.4, prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def childless(excluding: Collection[int] = ()) -> bool:
    """Return whether no child is there but those in ``excluding``; ``False`` if that is unclear.

    A fast answer, without a look at all processes (proc(5), ``/proc/[pid]/task/[tid]/children``).
    It misses nothing: a child leaves the list when it is reaped, and nobody reaps meanwhile.
    """
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                if any(int(pid) not in excluding for pid in file.read().split()):
                    return False
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN, or a thread that has just ended
        return False
    return True


def descendants(excluding: Collection[int] = ()) -> "List[psutil.Process]":
    """Return the processes below this one, but those in ``excluding`` and what is below them."""
    import psutil  # noqa: PLC0415  (10 ms that the start of a job need not wait for)

    children: Dict[int, List[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            children.setdefault(process.ppid(), []).append(process)
    found: List[psutil.Process] = []
    level = [os.getpid()]
    while level:
        below = [p for pid in level for p in children.get(pid, []) if p.pid not in excluding]
        found += below
        level = [process.pid for process in below]
    return found


def reap_orphans(own: Collection[int], foreign: Collection[int]) -> None:
    """Reap ended processes that came to us as orphans.

    Args:
        own: children that ``Child.poll`` reaps.
        foreign: children that were there before us and that others wait for.
    """
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in own or info.si_pid in foreign:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(info.si_pid, os.WNOHANG)


def has_callers(pid: int) -> bool:
    """Return whether somebody has connected to a port that a process listens on."""
    import psutil  # noqa: PLC0415

    try:
        process = psutil.Process(pid)
        # The name changed in psutil 6.0.
        look = getattr(process, "net_connections", None) or process.connections
        connections = look(kind="tcp4")
    except psutil.Error:
        return False
    ports = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return any(c.laddr.port in ports and c.raddr for c in connections)
