"""One job on one host, from its configuration to its exit status.

sagemaker-training's ``train`` program calls ``main`` if the environment has
``SAGEMAKER_TRAINING_MODULE=sagemaker_mxnet_training.training:main``.
"""

import os
import sys
import time
from typing import Mapping, Optional

from sagemaker_mxnet_toolkit.failure import ConfigurationError, Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.events import Verdict
from sagemaker_mxnet_training.config import configuration
from sagemaker_mxnet_training.config.configuration import Resolution
from sagemaker_mxnet_training.config.job import Job, describe, headline, secrets_of
from sagemaker_mxnet_training.host import result, verdict_text
from sagemaker_mxnet_training.host.supervisor import Supervisor
from sagemaker_mxnet_training.host.timeline import HostPhase, Timeline


def train(environ: Mapping[str, str], since: Optional[float] = None) -> int:
    """Run the job that the environment and the files in its base directory describe.

    Args:
        environ: the environment of the entrypoint.
        since: when the entrypoint started (monotonic, seconds); now by default.

    Returns:
        The exit status of the entrypoint (``docs/endings.md``).
    """
    started = time.monotonic() if since is None else since
    return _run(configuration.resolve(environ), started)


def _run(resolution: Resolution, started: float) -> int:
    """Run a valid job, or fail an invalid one on all hosts with its faults as the cause."""
    job = resolution.job
    timeline = Timeline(job.current_host)
    timeline.phase(HostPhase.RESOLVE, started)
    log = Log(job.current_host, job.log_level, secrets_of(job))
    fault = str(ConfigurationError(resolution.faults)) if resolution.faults else ""
    try:
        if fault and (len(job.hosts) == 1 or job.current_host not in job.hosts):
            return _fail(job, log, timeline, fault, started)
        if not fault:
            log("entrypoint", headline(job))
            log.debug("entrypoint", describe(job))
        return Supervisor(job, log, timeline).run(fault)
    finally:
        log.close()


def _fail(job: Job, log: Log, timeline: Timeline, reason: str, started: float) -> int:
    """Fail an invalid job without contacting other hosts."""
    failure = Failure(
        job.current_host, Role.ENTRYPOINT, log.redact(reason), kind=FailureKind.CONFIGURATION
    )
    timeline.failure(failure, time.monotonic())
    timeline.phase(None)
    result.clear(job.output_dir)
    problem = result.write_failure(job.output_dir, failure.text())
    if problem is not None:
        log.error("entrypoint", problem)
    seconds = time.monotonic() - started
    verdict = Verdict(Outcome.FAILURE, failure)
    log.error("entrypoint", verdict_text.failure_block(verdict, job.current_host, seconds, ""))
    facts = {"hosts": [job.current_host], "exit status": 1}
    directory = os.path.join(job.output_dir, "data")
    timeline.write(directory, verdict, facts)
    return 1


def main() -> None:
    """Run the job inside sagemaker-training's ``train`` (5.1.4), which imports and calls this.

    Returns after a success. After a failure or a stop it exits the process, since ``train`` would
    replace the exit status and the failure file, and report a stopped job as successful.
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
    """Wait for the last upload of sagemaker-training's S3 sync, a child of this process."""
    module = sys.modules.get("multiprocessing")
    if module is not None:
        for child in module.active_children():
            child.join(30)
