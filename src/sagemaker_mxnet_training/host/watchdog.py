"""Ends a host's processes when its supervisor cannot: killed, or frozen.

Run as a program by the supervisor, as its child. It holds the read end of a pipe on which the
supervisor beats. A closed pipe means that the supervisor is dead; silence, that it is frozen. In
both cases every process of the job on this host is killed, found by the job's identity in its
environment or as a child of such a one, and a failure file says so. In a container whose supervisor
is PID 1 the kernel does the first half of this by itself.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from typing import List, Mapping, Optional

JOB_VARIABLE = "SAGEMAKER_MXNET_JOB_ID"
"""Marks every process of a job on a host; set by the supervisor, inherited by all below it."""

CLEAN_END = b"."
BEAT = b"b"
_SWEEP_SECONDS = 3.0


class Watchdog:
    """The supervisor's side: starts the watchdog, beats, and lets it go at a clean end."""

    def __init__(
        self, job_id: str, silence: float, failure_file: str, host: str, env: Mapping[str, str]
    ) -> None:
        """Start the process.

        Args:
            job_id: value of ``JOB_VARIABLE`` in all the host's processes.
            silence: seconds without a beat after which the supervisor counts as frozen.
            failure_file: path of the failure file that the supervisor could not write.
            host: this host's name.
            env: environment of the watchdog.
        """
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        arguments = [str(read_end), job_id, str(silence), failure_file, host, str(os.getpid())]
        environment = {k: v for k, v in env.items() if k != JOB_VARIABLE}
        self._popen = subprocess.Popen(
            [sys.executable, "-u", os.path.abspath(__file__), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(read_end,),
            start_new_session=True,
        )
        os.close(read_end)
        self.pid = self._popen.pid

    def beat(self) -> None:
        """Say that the supervisor lives."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, BEAT)

    def release(self) -> None:
        """End the watchdog: nothing is left to watch."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, CLEAN_END)
        os.close(self._pipe)
        self._popen.kill()
        self._popen.wait()


def _silent(pipe: int, silence: float) -> Optional[str]:
    """Wait until the supervisor is gone; return why, or ``None`` after a clean end."""
    while True:
        readable, _, _ = select.select([pipe], [], [], silence)
        if not readable:
            return f"was silent for {silence:g} s (frozen?)"
        block = os.read(pipe, 4096)
        if not block:
            return "died without a goodbye (killed?)"
        if CLEAN_END in block:
            return None


def _sweep(job_id: str, supervisor: int) -> None:
    """Kill every process of the job until none is left."""
    import psutil  # noqa: PLC0415  (only needed at this rare end; the watchdog must stay small)

    deadline = time.monotonic() + _SWEEP_SECONDS
    while time.monotonic() < deadline:
        found: List[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid == supervisor or process.environ().get(JOB_VARIABLE) == job_id:
                    found.append(process)
        living = [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not living:
            return
        for process in living:
            with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
                for child in process.children(recursive=True):
                    if child.pid != os.getpid():
                        child.kill()
                process.kill()
        psutil.wait_procs(living, timeout=0.2)


def _write_failure(path: str, text: str) -> None:
    if not os.path.exists(path):
        with contextlib.suppress(OSError):
            with open(path + ".watchdog", "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.rename(path + ".watchdog", path)


def main() -> None:
    """Watch until the supervisor is gone. Arguments as ``Watchdog`` gives them."""
    pipe, job_id, silence, failure_file, host, supervisor = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cause = _silent(int(pipe), float(silence))
    if cause is not None:
        text = f"{host}: entrypoint failed: {cause}; its processes were ended by its watchdog\n"
        with contextlib.suppress(OSError):
            os.write(2, f"[sagemaker-mxnet-training] {text}".encode())
        _sweep(job_id, int(supervisor) if "silent" in cause else 0)
        _write_failure(failure_file, text)


if __name__ == "__main__":
    main()
