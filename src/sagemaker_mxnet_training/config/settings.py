"""The settings of this toolkit: each is declared once, here."""

import dataclasses
from dataclasses import dataclass
from typing import Mapping, Optional

from sagemaker_mxnet_toolkit.settings import declaration, variables
from sagemaker_mxnet_toolkit.settings.declaration import setting
from sagemaker_mxnet_toolkit.settings.sources import Sources
from sagemaker_mxnet_toolkit.settings.validation import (
    ADDRESSES,
    Validator,
    choice,
    port,
    seconds,
    text,
    whole,
)
from sagemaker_mxnet_training.config.hyperparameters import Hyperparameters

PREFIX = variables.PREFIX.lower()
"""What the names of their hyperparameters begin with."""

_FD = whole(0, 2**20, "a file descriptor")


@dataclass(frozen=True)
class Settings:
    """What can be set about this toolkit; ``setting`` says the meaning of each.

    Each is the hyperparameter ``sagemaker_mxnet_<name>``, or else the variable
    ``SAGEMAKER_MXNET_<NAME>``.

    Attributes:
        ps_port_given: not a setting: whether somebody asked for that very ``ps_port``.
        control_fd: not a setting: a listening socket inherited from ``local``.
    """

    join_timeout: float = setting(
        900.0, seconds(1), "how long hosts wait for each other, name resolution included"
    )
    peer_timeout: float = setting(15.0, seconds(1), "silence after which a host counts as lost")
    stop_grace: float = setting(
        110.0, seconds(), "time the script has after SIGTERM (SageMaker kills at 120 s)"
    )
    drain_timeout: float = setting(
        30.0,
        seconds(),
        "time scheduler and servers have to exit after the last worker has finished",
    )
    servers_per_host: int = setting(
        1,
        whole(1, 64, "a number of kvstore servers"),
        "kvstore servers on each host; the first host's value counts",
    )
    stall_timeout: float = setting(
        0.0,
        seconds(),
        "time without progress on every host that has not finished, after which the job fails",
        default_text="0 (off)",
    )
    max_restarts: Optional[int] = setting(
        None,
        whole(0, 1000, "a number of restarts"),
        "how often a failed job begins again",
        default_text="3 if the script uses `checkpoints`, else 0",
    )
    rejoin_timeout: float = setting(
        0.0,
        seconds(),
        "time a lost host has to come back, where something restarts its container",
        default_text="0 (none comes back)",
    )
    standby: str = setting(
        "auto",
        choice("on", "off", "auto"),
        "whether processes that have imported MXNet wait for a restart; `auto`: where there are "
        "two CPUs, and they take at most 5 % of the memory",
        default_text="`auto`",
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
        whole(0, 9, "a log level of ps-lite"),
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
        "JSON object, host name to IPv4 address, for names that do not resolve",
        default_text="`{}`",
    )
    job_key: Optional[str] = setting(
        None,
        text("a text that all hosts of the job share"),
        "secret that all hosts are given and nobody else has; see below",
        default_text="none",
        secret=True,
    )
    ps_port_given: bool = False
    control_fd: Optional[int] = None


def read(sources: Sources, hyperparameters: Hyperparameters, check: Validator) -> Settings:
    """Return the settings of a job; misspelled names are faults, too."""
    everything = {**hyperparameters.user, **hyperparameters.platform}
    found, given = declaration.read(Settings, PREFIX, sources, everything, check)
    control_port = found.control_port
    if "control_port" not in given and found.ps_port:
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
        ps_port_given="ps_port" in given and found.ps_port != 0,
        control_fd=check.value(inherited, _FD, 0) if inherited else None,
    )
