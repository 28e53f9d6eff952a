"""One job on one host, from its configuration to its exit status.

``main`` is also what ``SAGEMAKER_TRAINING_MODULE=sagemaker_mxnet_training.training:main`` names
for sagemaker-training's own ``train`` program.
"""

import os
import sys
import time
from typing import Mapping, Optional

from sagemaker_mxnet_toolkit.errors import ConfigurationError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.coordination import Verdict
from sagemaker_mxnet_training.config import configuration, description
from sagemaker_mxnet_training.config.configuration import Resolution
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import result, verdict_text
from sagemaker_mxnet_training.host.phase import HostPhase
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
    started = time.monotonic() if since is None else since
    return _run(configuration.resolve(environ), started)


def _run(resolution: Resolution, started: float) -> int:
    """Run a job that has no faults, or end it on all its hosts with its faults as the cause."""
    job = resolution.job
    timeline = Timeline(job.current_host)
    timeline.phase(HostPhase.RESOLVE, started)
    log = Log(job.current_host, job.log_level, description.secrets_of(job))
    fault = str(ConfigurationError(resolution.faults)) if resolution.faults else ""
    try:
        if fault and (len(job.hosts) == 1 or job.current_host not in job.hosts):
            return _refuse(job, log, timeline, fault, started)
        if not fault:
            log("entrypoint", description.describe(job))
        return Supervisor(job, log, timeline).run(fault)
    finally:
        log.close()


def _refuse(job: Job, log: Log, timeline: Timeline, reason: str, started: float) -> int:
    """End a job that has faults, and of which no other host is part."""
    failure = Failure(
        job.current_host, Role.ENTRYPOINT, log.redact(reason), kind=FailureKind.CONFIGURATION
    )
    timeline.failure(failure, time.monotonic())
    timeline.phase(None)
    result.clear(job.output_dir)
    trouble = result.write_failure(job.output_dir, failure.text())
    if trouble is not None:
        log.error("entrypoint", trouble)
    seconds = time.monotonic() - started
    verdict = Verdict(Outcome.FAILURE, failure)
    log.error("entrypoint", verdict_text.failure_block(verdict, job.current_host, seconds, ""))
    facts = {"hosts": [job.current_host], "exit status": 1}
    directory = os.path.join(job.output_dir, "data")
    timeline.write(directory, verdict, facts)
    return 1


def main() -> None:
    """Run the job inside sagemaker-training's ``train`` (5.1.4), which imports and calls this.

    After a success it returns, and the outer program ends as it likes. Otherwise it ends the
    process itself: the outer program would turn every status into its own, write its own failure
    file, and take a stopped job for a successful one.
    """
    started = time.monotonic()
    resolution = configuration.resolve(os.environ)
    output_dir = resolution.job.output_dir
    status = _run(resolution, started)
    if status == 0 and os.path.exists(os.path.join(output_dir, "success")):
        return
    if os.path.exists(result.failure_path(output_dir)):
        _wait_for_siblings()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait_for_siblings() -> None:
    """Let sagemaker-training's own S3 sync, a child of this process, do its last pass."""
    module = sys.modules.get("multiprocessing")
    if module is not None:
        for child in module.active_children():
            child.join(30)
