"""Starts, signals and reaps child processes, and reads their reports and stderr.

Each child has its own session, so that a signal to its process group also reaches its children, and
Ctrl-C in a terminal only reaches the supervisor. The supervisor is a subreaper (prctl(2),
PR_SET_CHILD_SUBREAPER), so orphaned descendants become its children.
"""

import array
import contextlib
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

from sagemaker_mxnet_toolkit.failure import FailureKind, Role, StartError
from sagemaker_mxnet_toolkit.log import write_all
from sagemaker_mxnet_toolkit.settings.variables import REPORT_FD

if TYPE_CHECKING:
    import psutil

# Linux's asm-generic/siginfo.h; os has them since CPython 3.9.
_CLD_KILLED = 2
_CLD_STOPPED = 5
_TAIL_BYTES = 16 * 1024
_REPORT_BYTES = 256 * 1024


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start.

    Attributes:
        role: its role.
        name: its name in logs, unique on its host.
        argv: program and arguments.
        environment: its complete environment.
        directory: its working directory.
        stdin_open: whether its stdin is a pipe that is open until ``Child.close_stdin``; otherwise
            it is empty.
        inherited: file descriptors that it inherits, with the same numbers.
        rank: Horovod's rank, if it is a worker with Horovod.
        output: file descriptors of this process for its stdout and its stderr.
    """

    role: Role
    name: str
    argv: Tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    directory: str = "/"
    stdin_open: bool = False
    inherited: Tuple[int, ...] = ()
    rank: Optional[int] = None
    output: Tuple[int, int] = (1, 2)


class StderrTail:
    """Forwards a child's stderr and keeps its last ``_TAIL_BYTES`` bytes.

    This is done in a thread, so that a blocked stderr blocks the script but not the supervisor.
    """

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._tail = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, name="stderr", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(source)
            raise

    def _copy(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                block = os.read(self._source, 65536)
                if not block:
                    break
                with self._lock:
                    self._tail += block
                    del self._tail[:-_TAIL_BYTES]
                # A closed stderr must not affect the script.
                write_all(self._sink, block)
        os.close(self._source)

    def finish(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds until all output has been forwarded."""
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.01)
            waiting = array.array("i", [0])
            try:
                fcntl.ioctl(self._source, termios.FIONREAD, waiting)
            except OSError:
                return
            if waiting[0] == 0:
                # Data that was read from the pipe may not be written yet.
                self._thread.join(0.01)
                return

    def text(self) -> str:
        """Return the last complete lines."""
        with self._lock:
            data = bytes(self._tail)
        if len(data) == _TAIL_BYTES:
            data = data[data.find(b"\n") + 1 :]
        # A progress bar rewrites its line; keep only its last state.
        lines = data.decode("utf-8", "replace").split("\n")
        return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines).strip("\n")


class Child:
    """A child process and its reports.

    Attributes:
        spec: its specification.
        pid: its process id, which is also its process group and session.
        returncode: ``None`` while it runs; -N if signal N killed it.
        frozen_since: when it was suspended by a signal such as SIGSTOP (monotonic, seconds), or
            ``None``.
        failure: the last ``failed`` event that it reported, if any.
        failed_at: when it first reported a failure (monotonic, seconds), or ``None``.
        stopped: whether it was asked to stop, so that its end is expected.
        report_closed: whether the child has closed its end of the report's pipe.
        started: when it was started (monotonic, seconds).
        signals: time (monotonic, seconds) and number of each signal that it was sent.
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
        self.stderr = StderrTail(_take_stderr(popen), spec.output[1])
        self.report = report
        self._popen = popen
        self._line = b""

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Read new events of the child. Invalid lines are ignored."""
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

    @property
    def failure_kind(self) -> Optional[FailureKind]:
        """The kind of the failure that it reported; ``None`` without one, or if it is not known."""
        with contextlib.suppress(ValueError):
            return None if self.failure is None else FailureKind(self.failure.get("kind"))
        return None

    def poll(self) -> Optional[int]:
        """Reap the child if it has ended, and check whether it is suspended; return its status."""
        if self.returncode is not None:
            return self.returncode
        flags = os.WNOHANG | os.WEXITED | os.WSTOPPED | os.WCONTINUED
        while True:
            try:
                info = os.waitid(os.P_PID, self.pid, flags)
            except ChildProcessError:  # other code in this process has reaped it
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
                # Otherwise subprocess would wait for a process id that may be reused.
                self._popen.returncode = self.returncode
                break
        return self.returncode

    def signal(self, number: int, leader_only: bool = False) -> None:
        """Send a signal to the child's process group, and continue it if it is suspended.

        Args:
            number: the signal.
            leader_only: whether to send it only to the child itself.
        """
        self._record(number)
        send = os.kill if leader_only else os.killpg
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(self.pid, number)
            if number != signal.SIGKILL:
                send(self.pid, signal.SIGCONT)

    def _record(self, number: int) -> None:
        # SIGKILL is repeated until the whole group has ended; record it once, and not for the child
        # if only the rest of its group is left.
        if self.returncode is None and (not self.signals or self.signals[-1][1] != number):
            self.signals.append((time.monotonic(), number))

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

    By default it inherits stdout. Its stderr is forwarded by ``StderrTail``, and it gets a pipe for
    its report (see ``child_report``).

    Raises:
        StartError: the program is missing or not executable, or the limit on processes, threads or
            open files is reached.
    """
    try:
        read_end, write_end = os.pipe()
    except OSError as error:
        raise StartError(spec.argv[0], error) from error
    os.set_blocking(read_end, False)
    environment = {**spec.environment, REPORT_FD: str(write_end)}
    popen = None
    try:
        popen = subprocess.Popen(
            spec.argv,
            env=environment,
            cwd=spec.directory,
            stdin=subprocess.PIPE if spec.stdin_open else subprocess.DEVNULL,
            stdout=None if spec.output[0] == 1 else spec.output[0],
            stderr=subprocess.PIPE,
            pass_fds=(write_end, *spec.inherited),
            start_new_session=True,
        )
        return Child(spec, popen, read_end)
    except (OSError, RuntimeError) as error:
        os.close(read_end)
        if popen is not None:  # the thread for its stderr could not be started
            with popen:
                popen.kill()
        where = spec.directory if not os.path.isdir(spec.directory) else spec.argv[0]
        raise StartError(where, error) from error
    finally:
        os.close(write_end)


def childless(excluding: Collection[int] = ()) -> bool:
    """Return whether there are no children, apart from ``excluding``; ``False`` if not known.

    This is fast, since it does not read all processes (proc(5),
    ``/proc/[pid]/task/[tid]/children``). It is reliable as long as no child is reaped meanwhile.
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
    """Return the descendants of this process, except ``excluding`` and their descendants."""
    import psutil  # takes 10 ms, not needed to start a job

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
    """Reap orphaned processes that have ended.

    Args:
        own: children that ``Child.poll`` reaps.
        foreign: children that other code waits for.
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
    """Return whether there is a connection to a port that a process listens on."""
    import psutil

    try:
        process = psutil.Process(pid)
        # Renamed in psutil 6.0.
        list_connections = getattr(process, "net_connections", None) or process.connections
        connections = list_connections(kind="tcp4")
    except psutil.Error:
        return False
    ports = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return any(c.laddr.port in ports and c.raddr for c in connections)
