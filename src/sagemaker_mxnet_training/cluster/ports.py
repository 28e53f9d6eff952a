"""TCP ports to listen on, and who has them."""

import errno
import itertools
import socket

from sagemaker_mxnet_toolkit.errors import NetworkError


def listen(address: str, port: int) -> socket.socket:
    """Return a listening TCP socket, non-blocking, for a ``LeaderChannel``.

    Args:
        address: an IPv4 address of this host; ``""`` for all of them.
        port: 0 for any free one.

    Raises:
        NetworkError: when the port cannot be had. The text names who has it, if that may be seen.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of an earlier job that linger in TIME_WAIT do not keep the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(4096)
    except OSError as error:
        sock.close()
        why = error.strerror
        if error.errno == errno.EADDRINUSE:
            why = f"it is taken by {port_owner(port) or 'a process that this one may not see'}"
        raise NetworkError(
            f"port {port} on {address or 'this host'} cannot be listened on: {why};"
            " end that process or give the job another port"
        ) from None
    sock.setblocking(False)
    return sock


def port_owner(port: int) -> str:
    """Name the process that listens on a TCP port of this host, or return an empty text.

    The command line ends before the first option other than ``-m``: options may hold secrets.
    """
    import psutil  # noqa: PLC0415 - 20 ms that only a failing job needs

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == "LISTEN" and connection.laddr.port == port
            # Without a pid it is another user's.
            if listens and connection.pid:
                process = psutil.Process(connection.pid)
                words = itertools.takewhile(
                    lambda word: word == "-m" or not word.startswith("-"), process.cmdline()[:3]
                )
                return f"process {process.pid}, {process.name()} ({' '.join(words)})"
    except (psutil.Error, OSError):
        pass
    return ""
