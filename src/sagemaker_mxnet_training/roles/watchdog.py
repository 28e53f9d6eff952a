"""Ends a host's processes when its supervisor cannot: killed, or frozen.

Started as a program by ``host.watchdog``. It holds the read end of a pipe on which the supervisor
beats. A closed pipe means that the supervisor is dead; silence, that it is frozen. In both cases
every process of the job on this host is killed, found by the job's identity in its environment or
as a child of such a one, and a failure file says so. In a container whose supervisor is PID 1 the
kernel does the first half of this by itself.

It waits for as long as the job runs, so it imports little: ``typing``, ``contextlib`` and
``subprocess`` would make it larger by a quarter.
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
    """Watch until the supervisor is gone. Arguments as ``host.watchdog`` gives them."""
    del sys.path[0]  # the directory of this file is no place to import from
    pipe, silence, marker, failure_file, host, supervisor = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cause = _watch(int(pipe), float(silence))
    if cause is not None:
        text = f"{host}: entrypoint failed: {cause}; its processes were ended by its watchdog\n"
        try:  # noqa: SIM105  (contextlib is one of those)
            os.write(2, f"[sagemaker-mxnet-training] {text}".encode())
        except OSError:
            pass  # nobody reads it any more
        _sweep(marker, int(supervisor) if "silent" in cause else 0)
        _write_failure(failure_file, text)


def _watch(pipe: int, silence: float):  # type: ignore[no-untyped-def]
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


def _sweep(marker: str, supervisor: int) -> None:
    """Kill every process of the job until none is left."""
    import psutil  # noqa: PLC0415  (only needed at this rare end)

    name, _, value = marker.partition("=")
    deadline = time.monotonic() + _SWEEP_SECONDS
    while time.monotonic() < deadline:
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == supervisor or process.environ().get(name) == value:
                    found.append(process)
            except psutil.Error:
                pass  # it has ended, or it is somebody else's
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
    try:
        with open(path + ".watchdog", "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".watchdog", path)
    except OSError:
        pass  # a full disk: it has been printed


if __name__ == "__main__":
    main()
