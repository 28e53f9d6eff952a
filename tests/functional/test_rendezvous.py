"""Horovod's rendezvous under the load of many processes."""

import multiprocessing
import socket
import subprocess
import time
from typing import Any, Tuple

from sagemaker_mxnet_toolkit.processes import program

RANKS = 128
SCOPES = 2  # Horovod has 8, which takes four times as long
ABSENT = 3  # requests of each rank in each scope for what is not there
CLIENTS = 4  # processes, each of which stands for a part of the ranks


def request(address: Tuple[str, int], method: str, path: str, body: bytes = b"") -> Any:
    """Return the status and the body of one request on a new connection."""
    with socket.create_connection(address, 60) as connection:
        head = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        data = b""
        while True:
            block = connection.recv(65536)
            if not block:
                break
            data += block
    head_, _, rest = data.partition(b"\r\n\r\n")
    return int(head_.split()[1]), rest


def meet(address: Tuple[str, int], client: int, barrier: Any, results: Any) -> None:
    """Do in each scope what the ranks of a client do: store, read all, wait for all, leave."""
    ranks = range(client, RANKS, CLIENTS)
    count = 0
    for scope in range(SCOPES):
        for rank in ranks:
            assert request(address, "PUT", f"/{scope}/{rank}", value(scope, rank))[0] == 200
        count += len(ranks)
        for rank in ranks:
            for _ in range(ABSENT):
                assert request(address, "GET", f"/{scope}/absent_{rank}")[0] == 404
            count += ABSENT
            for peer in range(RANKS):
                status, found = 404, b""
                while status == 404:
                    status, found = request(address, "GET", f"/{scope}/{peer}")
                    count += 1
                assert (status, found) == (200, value(scope, peer))
        barrier.wait(240)
        for rank in ranks:
            assert request(address, "DELETE", f"/{scope}/{rank}")[0] == 200
        count += len(ranks)
    results.put(count)


def value(scope: int, rank: int) -> bytes:
    """Return as many bytes as the addresses of so many processes have."""
    return f"{scope} {rank} ".encode() * (100 * RANKS // 10)


def test_store_serves_the_requests_of_128_ranks() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        address = listener.getsockname()
        options = ("--fd", str(listener.fileno()), "--allow", "127.0.0.1")
        argv = program.argv("sagemaker_mxnet_training.roles.rendezvous", *options)
        with subprocess.Popen(argv, pass_fds=[listener.fileno()]) as process:
            try:
                context = multiprocessing.get_context("fork")
                barrier, results = context.Barrier(CLIENTS), context.Queue()
                started = time.monotonic()
                clients = [
                    context.Process(target=meet, args=(address, number, barrier, results))
                    for number in range(CLIENTS)
                ]
                for client in clients:
                    client.start()
                for client in clients:
                    client.join(280)
                assert [client.exitcode for client in clients] == [0] * CLIENTS
                total = sum(results.get(timeout=10) for _ in clients)
                seconds = time.monotonic() - started
                print(f"{total} requests in {seconds:.1f} s, {total / seconds:.0f} a second")
                assert total >= 34_000
                assert process.poll() is None
            finally:
                process.terminate()
