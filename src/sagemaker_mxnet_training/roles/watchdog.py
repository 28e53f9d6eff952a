"""Kills a host's processes if its supervisor was killed or hangs.

``host.supervisor`` starts this program. The supervisor sends heartbeats on a pipe. If the pipe is
closed, the supervisor has died; if it is silent, the supervisor hangs. In both cases this program
kills all processes of the job on this host (which have the job's id in their environment) and their
descendants, and writes the failure file. In a container whose supervisor is PID 1, the kernel kills
all processes when it dies.

It runs as long as the job, so it imports little: ``typing``, ``contextlib`` and ``subprocess``
would increase its memory by a quarter.
"""

import os
import select
import signal
import sys
import time

CLEAN_END = b"."
BEAT = b"b"
_SWEEP_SECONDS = 3.0


def main() -> None:
    """Watch the supervisor. ``host.supervisor`` passes the arguments."""
    del sys.path[0]  # do not import from the directory of this file
    pipe, silence, marker, failure_file, host, supervisor = sys.argv[1:]
    # The same as in processes.own_process, which is not imported to save memory.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cause = _watch(int(pipe), float(silence))
    if cause is not None:
        text = f"{host}: entrypoint failed: {cause}; the watchdog killed its processes\n"
        try:  # noqa: SIM105  (contextlib is not imported)
            os.write(2, f"[sagemaker-mxnet-training] {text}".encode())
        except OSError:
            pass  # stderr is closed
        _sweep(marker, int(supervisor) if "silent" in cause else 0)
        _write_failure(failure_file, text)


def _watch(pipe: int, silence: float):  # type: ignore[no-untyped-def]
    """Wait until the supervisor dies or hangs; return the cause, or ``None`` after a clean end."""
    while True:
        readable, _, _ = select.select([pipe], [], [], silence)
        if not readable:
            return f"was silent for {silence:g} s (frozen?)"
        block = os.read(pipe, 4096)
        if not block:
            return "died unexpectedly (killed?)"
        if CLEAN_END in block:
            return None


def _sweep(marker: str, supervisor: int) -> None:
    """Kill all processes of the job until none is left."""
    import psutil  # late, to save memory

    name, _, value = marker.partition("=")
    deadline = time.monotonic() + _SWEEP_SECONDS
    while time.monotonic() < deadline:
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == supervisor or process.environ().get(name) == value:
                    found.append(process)
            except psutil.Error:
                pass  # it has ended, or belongs to another user
        living = [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not living:
            return
        for process in living:
            try:
                for child in process.children(recursive=True):
                    if child.pid != os.getpid():
                        child.kill()
                process.kill()
            except psutil.Error:
                pass
        psutil.wait_procs(living, timeout=0.2)


def _write_failure(path: str, text: str) -> None:
    if os.path.exists(path):
        return
    import contextlib

    from sagemaker_mxnet_toolkit.atomic_files import write_text

    with contextlib.suppress(OSError):  # such as a full disk; the text was printed
        write_text(path, text)


if __name__ == "__main__":
    main()
