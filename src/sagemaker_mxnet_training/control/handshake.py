"""Mutual authentication of two hosts of a job, when they connect.

Both send ``Hello`` with a random nonce, the follower first. Then the follower sends ``Join``, and
the leader ``Welcome`` or ``Refused``. These have a proof: an HMAC with the job's key over both
hellos and the message itself. Later messages are not signed: the key protects from hosts outside
the job, not from someone who can modify its traffic.

The key is derived from the job's name, its ARN, and ``job_key`` if it is set. Other parts of the
configuration must be equal on all hosts: ``Join`` has a digest of each part. It is keyed, so that
someone who reads the traffic cannot test guesses of secret hyperparameters.
"""

import hashlib
import hmac
import json
import os
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, TypeVar, Union

from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control import wire
from sagemaker_mxnet_training.control.wire import WireError

PROTOCOL = "sagemaker-mxnet-control"
VERSION = 1

_HOST_LIMIT = 253  # maximum length of a DNS name (RFC 1035, section 2.3.4)


@dataclass(frozen=True)
class Hello:
    """The identity that a peer claims. It is the same in all versions of the protocol."""

    protocol: str
    version: int
    host: str
    nonce: str


@dataclass(frozen=True)
class Join:
    """A follower's request to join.

    Attributes:
        parts: a digest of each part of the job that must be equal on all hosts.
        proof: see ``signed``.
    """

    parts: Mapping[str, str]
    proof: str = ""


@dataclass(frozen=True)
class Welcome:
    """The leader accepts the follower."""

    proof: str = ""


@dataclass(frozen=True)
class Refused:
    """The leader rejects the follower.

    Attributes:
        reason: why, to follow the follower's name.
        final: whether the follower must fail. Otherwise it retries, since the leader of the next
            job may accept it.
        proof: see ``signed``.
    """

    reason: str
    final: bool
    proof: str = ""


Signed = TypeVar("Signed", bound=Union[Join, Welcome, Refused])


def derive_key(job: Job) -> bytes:
    """Return the key that the hosts of a job share."""
    arn = job.environ.get("TRAINING_JOB_ARN", "")
    material = _canonical([PROTOCOL, job.job_name, arn, job.settings.job_key])
    return hashlib.sha256(material).digest()


def digests(job: Job, key: bytes) -> Dict[str, str]:
    """Return a digest of each part of a job that must be equal on all hosts."""
    parts = {
        "hyperparameters": dict(job.hyperparameters),
        "use of the parameter server, or framework parameters": [
            job.parameter_server,
            job.ranks,  # depends on the number of GPUs by default
            dict(job.framework_parameters),
        ],
        "lists of hosts": list(job.hosts),
    }
    return {
        name: hmac.new(key, _canonical([name, part]), hashlib.sha256).hexdigest()
        for name, part in parts.items()
    }


def differences(mine: Mapping[str, str], others: Mapping[str, str]) -> List[str]:
    """Return the parts of a job in which two hosts differ, to follow "different"."""
    return [part for part in mine if mine[part] != others.get(part)]


def hello(host: str) -> Hello:
    """Return the first message of a host, with a new nonce."""
    return Hello(PROTOCOL, VERSION, host, os.urandom(32).hex())


def read_hello(payload: bytes) -> Hello:
    """Decode the first message of a peer.

    Raises:
        WireError: it is not a hello of any version of this protocol.
    """
    hello: Hello = wire.decode(payload, Hello)
    if hello.protocol != PROTOCOL:
        raise WireError("does not use this protocol")
    if not 0 < len(hello.host) <= _HOST_LIMIT:
        raise WireError("sent an invalid host name")
    return hello


def signed(message: Signed, key: bytes, hellos: bytes) -> Signed:
    """Return a message with a proof that its sender has the key.

    Args:
        message: the message.
        key: the job's key.
        hellos: the frames of both hellos of this connection, the follower's first.
    """
    content = hellos + wire.encode(replace(message, proof=""))
    return replace(message, proof=hmac.new(key, content, hashlib.sha256).hexdigest())


def proves(message: Signed, key: bytes, hellos: bytes) -> bool:
    """Return whether the proof of a message is valid."""
    expected = signed(message, key, hellos).proof
    return hmac.compare_digest(expected.encode(), message.proof.encode("utf-8", "replace"))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
