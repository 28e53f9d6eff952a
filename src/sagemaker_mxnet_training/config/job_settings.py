"""The settings of a training job."""

import dataclasses
from dataclasses import dataclass
from typing import Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.settings import declaration, variables
from sagemaker_mxnet_toolkit.settings.declaration import setting
from sagemaker_mxnet_toolkit.settings.sources import Found, Sources
from sagemaker_mxnet_toolkit.settings.validation import (
    ADDRESSES,
    Validator,
    integer,
    port,
    seconds,
    string,
)
from sagemaker_mxnet_training.config.hyperparameters import Hyperparameters

PREFIX = variables.PREFIX.lower()
"""Prefix of their hyperparameters."""

_FD = integer(0, 2**20, "a file descriptor")


@dataclass(frozen=True)
class Settings:
    """The settings of a job.

    Each is read from the hyperparameter ``sagemaker_mxnet_<name>``, or else from the variable
    ``SAGEMAKER_MXNET_<NAME>``.

    Attributes:
        explicit_ps_port: not a setting: whether ``ps_port`` was set explicitly.
        control_fd: not a setting: a listening socket inherited from ``local``.
        rank_output: not a setting: two file descriptors for each of Horovod's workers on this host,
            for its stdout and its stderr, inherited from ``local``.
    """

    join_timeout: float = setting(
        900.0, seconds(1), "how long hosts wait for each other, name resolution included"
    )
    peer_timeout: float = setting(15.0, seconds(1), "silence after which a host counts as lost")
    stop_grace: float = setting(
        110.0, seconds(), "time between SIGTERM and SIGKILL (SageMaker kills after 120 s)"
    )
    drain_timeout: float = setting(
        30.0,
        seconds(),
        "maximum time for scheduler and servers to exit after the last worker has finished",
    )
    servers_per_host: int = setting(
        1,
        integer(1, 64, "a number of kvstore servers"),
        "kvstore servers on each host; the first host's value is used",
    )
    stall_timeout: float = setting(
        0.0,
        seconds(),
        "the job fails after this time without progress on any running host",
        default_text="0 (off)",
    )
    max_restarts: Optional[int] = setting(
        None,
        integer(0, 1000, "a number of restarts"),
        "maximum number of restarts after a failure",
        default_text="3 if the script uses `checkpoints`, else 0",
    )
    ps_port: int = setting(
        8000,
        port(0),
        "TCP port of the kvstore scheduler on the first host, 0 for any free one; "
        "`_ps_port` takes precedence",
        alias="_ps_port",
        alias_kind=port(),
    )
    ps_verbose: int = setting(
        0,
        integer(0, 9, "a log level of ps-lite"),
        "log level of ps-lite, 0 to 2; `_ps_verbose` takes precedence",
        alias="_ps_verbose",
    )
    control_port: int = setting(
        8001,
        port(),
        "TCP port of the first host on which the others join",
        default_text="`ps_port` + 1",
    )
    host_addresses: Mapping[str, str] = setting(
        {},
        ADDRESSES,
        "JSON object of host names and IPv4 addresses, for names that do not resolve; the first "
        "host listens on its own address in it",
        default_text="`{}`",
    )
    job_key: Optional[str] = setting(
        None,
        string("a string that all hosts of the job share"),
        "secret shared by the hosts of the job; see below",
        default_text="none",
        secret=True,
    )
    explicit_ps_port: bool = False
    control_fd: Optional[int] = None
    rank_output: Tuple[int, ...] = ()


def read(sources: Sources, hyperparameters: Hyperparameters, check: Validator) -> Settings:
    """Return the settings of a job. Misspelled names are faults."""
    everything = {**hyperparameters.user, **hyperparameters.platform}
    found, explicit = declaration.read(Settings, PREFIX, sources, everything, check)
    control_port = found.control_port
    if "control_port" not in explicit and found.ps_port:
        control_port = found.ps_port + 1 if found.ps_port < 65535 else found.ps_port - 1
    if control_port == found.ps_port:
        check.faults.add(
            f"control_port and ps_port are both {control_port}",
            None,
            f"another port in {PREFIX}control_port or {variables.PREFIX}CONTROL_PORT",
        )
    inherited = sources.variable(variables.CONTROL_FD)
    return dataclasses.replace(
        found,
        control_port=control_port,
        explicit_ps_port="ps_port" in explicit and found.ps_port != 0,
        control_fd=check.value(inherited, _FD, 0) if inherited else None,
        rank_output=_file_descriptors(sources.variable(variables.RANK_OUTPUT), check),
    )


def _file_descriptors(found: Optional[Found], check: Validator) -> Tuple[int, ...]:
    words = found.value.split(",") if found is not None else ()
    return tuple(check.value(found._replace(value=word), _FD, 0) for word in words if found)
