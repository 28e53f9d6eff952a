"""Listening TCP sockets, and the processes that own ports."""

import errno
import itertools
import socket

from sagemaker_mxnet_toolkit.failure import NetworkError

INVISIBLE = "a process of another user or container"
"""The owner of a port if ``port_owner`` cannot find it."""

BACKLOG = 4096
"""Connections that may wait to be accepted."""


def listen(
    address: str, port: int, remedy: str = "stop that process, or use another port"
) -> socket.socket:
    """Return a listening TCP socket, non-blocking.

    Args:
        address: an address of this host, IPv4 or IPv6; ``""`` for all of IPv4.
        port: 0 for any free one.
        remedy: what to do about a failure, for the error message.

    Raises:
        NetworkError: the port is taken (the message names the process, if possible) or not
            permitted, or the address is not one of this host.
    """
    try:
        return bind(address, port)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why = f"it is taken by {port_owner(port) or INVISIBLE}"
        elif error.errno == errno.EADDRNOTAVAIL:
            remedy = "set an address of this host"
    where = f"{address} port {port}" if address else f"port {port}"
    raise NetworkError(f"cannot listen on {where}: {why}; {remedy}")


def bind(address: str, port: int) -> socket.socket:
    """Return a listening TCP socket, non-blocking; raise ``OSError`` if that fails."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Ignore connections of an earlier program in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def port_owner(port: int) -> str:
    """Describe the process that listens on a TCP port of this host; empty if it is not known.

    The command line is cut at the first option other than ``-m``, since options may have secrets.
    """
    import psutil  # takes 20 ms, only needed for a failure

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == "LISTEN" and connection.laddr.port == port
            # There is no pid if the process belongs to another user.
            if listens and connection.pid:
                process = psutil.Process(connection.pid)
                words = itertools.takewhile(
                    lambda word: word == "-m" or not word.startswith("-"), process.cmdline()[:3]
                )
                return f"process {process.pid}, {process.name()} ({' '.join(words)})"
    except (psutil.Error, OSError):
        pass
    return ""
