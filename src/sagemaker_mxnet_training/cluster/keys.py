"""The keys by which the hosts of a job know each other, and notice in what they disagree.

All keys are derived from what the hosts of a job are given alike: its name and ARN, its list of
hosts, its hyperparameters, the framework's parameters, and ``job_key`` where somebody set it. With
a ``job_key`` that nobody else knows, nobody else can join. Without one, whoever knows the rest can:
SageMaker hands the containers of a job no secret that they share and that others do not know.

``JobKeys.full`` is the key of the control channel. The other keys each leave a part out. Two hosts
that were given different hyperparameters share the key that leaves the hyperparameters out, and no
other: the key that fits tells what differs, and proves at the same time that the peer knows
everything else. Nothing is compared in the open.

No key leaves the job's name and ARN out: who calls with another name belongs to another job, and
another job must not disturb this one.

What each key gives away to somebody who listens is a way to test guesses at its material. So only
keys that hold ``job_key`` hold the hyperparameters, which may be secret too.
"""

from dataclasses import dataclass
from typing import Any, Dict, Mapping

from sagemaker_mxnet_training.cluster.frames import derive_key
from sagemaker_mxnet_training.config.job import Job

HYPERPARAMETERS = "hyperparameters"
PARAMETER_SERVER = "use of the parameter server, or framework parameters"
HOSTS = "lists of hosts"
SECRET = "values of job_key"
SEVERAL = "values of more than one of hyperparameters, framework parameters, hosts and job_key"

_NAME = "name"


@dataclass(frozen=True)
class JobKeys:
    """The keys of a job, as one host derives them.

    Attributes:
        full: of everything; who holds it is a member.
        without: what is left out, in words that follow "different", to the key of the rest; in
            the order in which they are tried.
        secret: whether a ``job_key`` is part of ``full``.
    """

    full: bytes
    without: Mapping[str, bytes]
    secret: bool = False

    @classmethod
    def of(cls, job: Job) -> "JobKeys":
        """Derive the keys of a job."""
        parts: Dict[str, Any] = {
            _NAME: [job.job_name, job.environ.get("TRAINING_JOB_ARN", "")],
            HOSTS: list(job.hosts),
            HYPERPARAMETERS: dict(job.hyperparameters),
            PARAMETER_SERVER: [job.parameter_server, dict(job.framework_parameters)],
            SECRET: job.settings.job_key,
        }
        left_out = {
            HYPERPARAMETERS: {HYPERPARAMETERS},
            PARAMETER_SERVER: {PARAMETER_SERVER},
            HOSTS: {HOSTS},
            SECRET: {SECRET, HYPERPARAMETERS},
        }
        if any(parts[_NAME]):
            left_out[SEVERAL] = set(parts) - {_NAME}
        return cls(
            derive_key(parts),
            {
                what: derive_key(
                    {
                        "without": what,
                        "parts": {name: parts[name] for name in parts if name not in names},
                    }
                )
                for what, names in left_out.items()
            },
            job.settings.job_key is not None,
        )

    def proves_membership(self, difference: str) -> bool:
        """Tell whether the key without this part can only be known to a host of the job."""
        return self.secret and difference not in (SECRET, SEVERAL)
