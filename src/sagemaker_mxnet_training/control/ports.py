"""The TCP port of the kvstore's scheduler."""

import os

from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.listening import INVISIBLE, bind, port_owner
from sagemaker_mxnet_toolkit.log import Log


def scheduler_port(address: str, port: int, explicit: bool, log: Log) -> int:
    """Return the TCP port for the kvstore's scheduler.

    Args:
        address: the address of the scheduler.
        port: the preferred port; 0 for any free one.
        explicit: whether the port was set explicitly.
        log: logs that another port is used.

    Raises:
        NetworkError: the port was set explicitly and is taken, or no port is free.
    """
    if port == 0:
        return _free_port(address)
    if _is_free(address, port):
        return port
    owner = port_owner(port) or INVISIBLE
    if explicit:
        raise NetworkError(
            f"port {port} on {address} is taken by {owner}; stop that process, or set another port "
            "(hyperparameter _ps_port)"
        )
    other = _free_port(address)
    log.warning("scheduler", f"port {port} is taken by {owner}; using port {other} instead")
    return other


def _free_port(address: str) -> int:
    """Return a free TCP port.

    It is below Linux's range for outgoing connections (from 32768), so that none of these can take
    it before the scheduler does.
    """
    for _ in range(100):
        port = 10000 + int.from_bytes(os.urandom(4), "big") % 22768
        if _is_free(address, port):
            return port
    raise NetworkError(f"cannot find a free TCP port on {address} between 10000 and 32767")


def _is_free(address: str, port: int) -> bool:
    try:
        bind(address, port).close()
    except OSError:
        return False
    return True
