"""The supervisor's side of the watchdog, which ends the host's processes if it cannot itself.

``roles.watchdog`` is the program.
"""

import contextlib
import os
import subprocess
import sys
from typing import Mapping

from sagemaker_mxnet_training.roles import watchdog

JOB_VARIABLE = "SAGEMAKER_MXNET_JOB_ID"
"""Marks every process of a job on a host; set by the supervisor, inherited by all below it."""


class Watchdog:
    """Starts the watchdog, sends it heartbeats, and ends it at a clean end of the job."""

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
        marker = f"{JOB_VARIABLE}={job_id}"
        arguments = [str(read_end), str(silence), marker, failure_file, host, str(os.getpid())]
        environment = {k: v for k, v in env.items() if k != JOB_VARIABLE}
        self._popen = subprocess.Popen(
            [sys.executable, "-u", os.path.abspath(watchdog.__file__), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(read_end,),
            start_new_session=True,
        )
        os.close(read_end)
        self.pid = self._popen.pid

    def beat(self) -> None:
        """Send a heartbeat: the supervisor's loop turns."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, watchdog.BEAT)

    def release(self) -> None:
        """End the watchdog: nothing is left to watch."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, watchdog.CLEAN_END)
        os.close(self._pipe)
        self._popen.kill()
        self._popen.wait()
