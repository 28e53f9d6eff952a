"""Starts the watchdog, and sends it the supervisor's heartbeats.

The watchdog (``roles.watchdog``) kills the host's processes if the supervisor dies or hangs.
"""

import contextlib
import os
import subprocess
import sys
from typing import Mapping

from sagemaker_mxnet_toolkit.errors import StartError
from sagemaker_mxnet_toolkit.settings.variables import JOB_ID
from sagemaker_mxnet_training.roles import watchdog


class Watchdog:
    """Starts the watchdog, sends heartbeats, and stops it at the end of the job."""

    def __init__(
        self, job_id: str, silence: float, failure_file: str, host: str, env: Mapping[str, str]
    ) -> None:
        """Start the process.

        Args:
            job_id: value of ``JOB_ID`` in all processes of the host.
            silence: seconds without a heartbeat after which the supervisor is considered frozen.
            failure_file: path of the failure file.
            host: this host's name.
            env: environment of the watchdog.

        Raises:
            StartError: it cannot be started.
        """
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        marker = f"{JOB_ID}={job_id}"
        arguments = [str(read_end), str(silence), marker, failure_file, host, str(os.getpid())]
        environment = {k: v for k, v in env.items() if k != JOB_ID}
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-u", os.path.abspath(watchdog.__file__), *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(read_end,),
                start_new_session=True,
            )
        except OSError as error:
            raise StartError("the watchdog", error) from error
        os.close(read_end)
        self.pid = self._popen.pid

    def beat(self) -> None:
        """Send a heartbeat."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, watchdog.BEAT)

    def release(self) -> None:
        """Stop the watchdog."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, watchdog.CLEAN_END)
        os.close(self._pipe)
        self._popen.kill()
        self._popen.wait()
