"""One job on one host, from its configuration to its exit status.

``main`` is also what ``SAGEMAKER_TRAINING_MODULE=sagemaker_mxnet_training.training:main`` names
for sagemaker-training's own ``train`` program.
"""

import os
import sys
import time
from typing import Mapping, Optional

from sagemaker_mxnet_toolkit.errors import ConfigurationError
from sagemaker_mxnet_toolkit.failure import Failure, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.coordination import Verdict
from sagemaker_mxnet_training.config import configuration, description
from sagemaker_mxnet_training.host import result
from sagemaker_mxnet_training.host.supervisor import Supervisor
from sagemaker_mxnet_training.host.timeline import Timeline


def train(environ: Mapping[str, str], since: Optional[float] = None) -> int:
    """Run the job that the environment and the files below its base directory describe.

    Args:
        environ: the environment of the entrypoint.
        since: when the entrypoint began (monotonic, seconds): with this call by default.

    Returns:
        The exit status of the entrypoint, as README.md ("How jobs end") lists them.
    """
    started = time.monotonic()
    host = configuration.host_name(environ)
    timeline = Timeline(host)
    timeline.phase("resolve", since)
    fault = ""
    try:
        job = configuration.resolve(environ)
    except ConfigurationError as error:
        if error.job is None or len(error.job.hosts) == 1 or host not in error.job.hosts:
            return _refuse(environ, timeline, str(error), started)
        job, fault = error.job, str(error)
    log = Log(job.current_host, job.log_level, description.secrets_of(job))
    if not fault:
        log("entrypoint", description.describe(job))
    try:
        return Supervisor(job, log, timeline).run(fault)
    finally:
        log.close()


def _refuse(environ: Mapping[str, str], timeline: Timeline, reason: str, started: float) -> int:
    """End a job that cannot even be described, and that no other host is part of."""
    host = timeline.host
    log = Log(host)
    failure = Failure(host, Role.ENTRYPOINT, log.redact(reason))
    timeline.failure(failure, time.monotonic())
    timeline.phase(None)
    directory = configuration.output_directory(environ)
    result.clear(directory)
    trouble = result.write_failure(directory, failure.text())
    if trouble is not None:
        log.error("entrypoint", trouble)
    seconds = time.monotonic() - started
    log.error("entrypoint", result.last_words(failure, host, seconds, ""))
    verdict = Verdict(Outcome.FAILURE, failure)
    timeline.write(os.path.join(directory, "data"), verdict, {"hosts": [host], "exit status": 1})
    log.close()
    return 1


def main() -> None:
    """Run the job inside sagemaker-training's ``train`` (5.1.4), which imports and calls this.

    After a success it returns, and the outer program ends as it likes. Otherwise it ends the
    process itself: the outer program would turn every status into its own, write its own failure
    file, and take a stopped job for a successful one.
    """
    status = train(os.environ)
    if status == 0 and os.path.exists(_success_file()):
        return
    _wait_for_siblings()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _success_file() -> str:
    return os.path.join(configuration.output_directory(os.environ), "success")


def _wait_for_siblings() -> None:
    """Let sagemaker-training's own S3 sync, a child of this process, do its last pass."""
    module = sys.modules.get("multiprocessing")
    if module is not None and os.path.exists(
        result.failure_path(configuration.output_directory(os.environ))
    ):
        for child in module.active_children():
            child.join(30)
