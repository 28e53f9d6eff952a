"""Takes the figures and prints the table: both toolkits in turn, on the same jobs."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from benchmarks import control
from benchmarks.jobs import CODE, Observed, Toolkit, run
from benchmarks.table import Row, line, machine, table

FAULT_BOUND = 20.0
"""Seconds that a job with a fault has to end before it counts as hanging."""

Sample = Dict[str, float]


class Benchmark:
    """Both toolkits, a directory to work in, and how often everything is done."""

    def __init__(self, ours: Toolkit, peer: Toolkit, directory: Path, rounds: int) -> None:
        self.toolkits = (ours, peer)
        self.directory = directory
        self.rounds = rounds

    def alternate(
        self, measure: Callable[[Toolkit], Sample], rounds: Optional[int] = None
    ) -> Tuple[Dict[str, List[float]], Dict[str, List[float]]]:
        """Measure both in turn; return the values of each figure, ours and the peer's."""
        values: Tuple[Dict[str, List[float]], Dict[str, List[float]]] = ({}, {})
        for number in range(rounds or self.rounds):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            for which in order:
                for name, value in measure(self.toolkits[which]).items():
                    values[which].setdefault(name, []).append(value)
        return values

    def imports(self) -> Iterator[Row]:
        """Import what an image's entrypoint imports, and MXNet as any Python process does."""

        def measure(toolkit: Toolkit) -> Sample:
            entrypoint, _ = _import(toolkit, toolkit.module)
            took, cpu = _import(toolkit, "mxnet")
            return {"entrypoint": 1e3 * entrypoint, "mxnet": took, "cpu": cpu}

        ours, peer = self.alternate(measure, 2 * self.rounds)
        name = "import of the entrypoint's module"
        yield Row(name, "ms", ours["entrypoint"], peer["entrypoint"])
        yield Row("import mxnet", "s", ours["mxnet"], peer["mxnet"], target=0.35)
        yield Row("import mxnet, CPU", "s", ours["cpu"], peer["cpu"], target=0.35)

    def plain(self) -> Iterator[Row]:
        """Run a script that does nothing, one host."""

        def measure(toolkit: Toolkit) -> Sample:
            seen = run(toolkit, self.directory, "plain.py")
            return _around(seen)

        ours, peer = self.alternate(measure)
        yield Row("first line, 1 host", "s", ours["first"], peer["first"], target=0.5)
        yield Row("last line to exit, 1 host", "s", ours["exit"], peer["exit"], target=0.5)

    def requirements(self) -> Iterator[Row]:
        """Install what is there already."""

        def measure(toolkit: Toolkit) -> Sample:
            packages = "numpy>=1.17\npsutil\nrequests\nboto3\n"
            return _around(run(toolkit, self.directory, "plain.py", requirements=packages))

        ours, peer = self.alternate(measure)
        name = "first line, satisfied requirements.txt"
        yield Row(name, "s", ours["first"], peer["first"], target=0.5)

    def steps(self) -> Iterator[Row]:
        """Take one step of the kvstore, on 1, 2, 4 and 8 hosts."""
        for hosts in (1, 2, 4, 8):

            def measure(toolkit: Toolkit, hosts: int = hosts) -> Sample:
                return _around(run(toolkit, self.directory, "step.py", hosts, server=True))

            ours, peer = self.alternate(measure, self.rounds if hosts <= 2 else 2)
            which = f"kvstore, {hosts} host{'s' if hosts > 1 else ''}"
            strict = hosts <= 2
            target = 0.5 if strict else 0.0
            yield Row(f"first line, {which}", "s", ours["first"], peer["first"], target=target)
            target = 0.4 if strict else 0.0
            yield Row(f"first step done, {which}", "s", ours["step"], peer["step"], target=target)
            target = 0.5 if strict else 0.0
            yield Row(f"last line to exit, {which}", "s", ours["exit"], peer["exit"], target=target)

    def fault(self) -> Iterator[Row]:
        """Raise in the script of one of two hosts."""
        ours, peer = self.toolkits

        def measure(toolkit: Toolkit) -> Optional[float]:
            seen = run(
                toolkit,
                self.directory,
                "step.py",
                2,
                server=True,
                hyperparameters={"fault": ""},
                timeout=FAULT_BOUND,
            )
            times = [when for when in seen.ended if when is not None]
            return max(times) - seen.marks[1]["fault"] if len(times) == 2 else None

        taken = [measure(ours) for _ in range(self.rounds)]
        theirs = measure(peer)
        yield Row(
            "fault to everybody ended, 2 hosts",
            "s",
            [value for value in taken if value is not None],
            [] if theirs is None else [theirs],
            f"hangs (given up after {FAULT_BOUND:g} s)" if theirs is None else "",
        )

    def training(self) -> Iterator[Row]:
        """Train models of 7 million parameters in many small or few large arrays."""
        yield from self._training(7, (400, 132, 30), (4, 1323, 60))

    def large(self) -> Iterator[Row]:
        """Train models of 70 million parameters."""
        yield from self._training(70, (400, 418, 6), (4, 4183, 6), (1, 8367, 6))

    def _training(self, million: int, *models: Tuple[int, int, int]) -> Iterator[Row]:
        for layers, width, steps in models:
            watched = ("training", 3.0) if (million, layers) == (7, 400) else ("", 0.0)
            values = {"layers": layers, "width": width, "steps": steps}

            def measure(
                toolkit: Toolkit,
                values: Dict[str, int] = values,
                watched: Tuple[str, float] = watched,
            ) -> Sample:
                seen = run(
                    toolkit,
                    self.directory,
                    "train.py",
                    2,
                    server=True,
                    hyperparameters=values,
                    watch=watched,
                )
                seen.exit()
                sample = {"steps": seen.mean("steps_per_second")}
                if seen.entrypoint is not None:
                    sample["resident"] = seen.entrypoint.resident / 1e6
                    sample["proportional"] = seen.entrypoint.proportional / 1e6
                    sample["cpu"] = 100 * seen.entrypoint.cpu
                return sample

            ours, peer = self.alternate(measure, min(3, self.rounds))
            arrays = "one array" if layers == 1 else f"{layers} arrays"
            yield Row(
                f"training, 2 hosts, {million} M parameters in {arrays}",
                "steps/s",
                ours["steps"],
                peer["steps"],
                target=1.0,
                higher_is_better=True,
            )
            if watched[0]:
                for name, unit in (("resident", "MB"), ("proportional", "MB"), ("cpu", "%")):
                    what = "CPU" if name == "cpu" else f"{name} memory"
                    target = 0.0 if name == "cpu" else 0.6
                    yield Row(
                        f"entrypoint's {what} while training",
                        unit,
                        ours[name],
                        peer[name],
                        target=target,
                    )

    def horovod(self) -> Iterator[Row]:
        """Exchange gradients and update weights, and train, with Horovod and over the kvstore."""
        sizes = ((7, 4, 1323, 60, 1.2), (7, 400, 132, 30, 2.0), (70, 4, 4183, 12, 1.5))
        for exchange in (True, False):
            for million, layers, width, steps, target in sizes:
                values = self._beside_kvstore(
                    {"layers": layers, "width": width, "steps": steps, "exchange": int(exchange)}
                )
                what = "exchange and optimizer" if exchange else "training"
                yield Row(
                    f"Horovod beside dist_sync, {what}, {million} M parameters in {layers} arrays",
                    "steps/s",
                    values[True],
                    values[False],
                    target=target if exchange else 0.0,
                    higher_is_better=True,
                )

    def _beside_kvstore(self, options: Dict[str, object]) -> Dict[bool, List[float]]:
        """Return the steps per second of two hosts, with Horovod (``True``) and without."""
        values: Dict[bool, List[float]] = {True: [], False: []}
        for number in range(min(3, self.rounds)):
            for with_horovod in (number % 2 == 0, number % 2 != 0):
                enabled = {"horovod": 1, "sagemaker_mpi_enabled": True} if with_horovod else {}
                seen = run(
                    self.toolkits[0],
                    self.directory,
                    "train.py",
                    2,
                    server=not with_horovod,
                    hyperparameters={**options, **enabled},
                )
                seen.exit()
                values[with_horovod].append(seen.mean("steps_per_second"))
        return values

    def survival(self) -> Iterator[Row]:
        """Train with checkpoints at the automatic interval, and without."""
        for million, width, steps, rounds in ((7, 1323, 400, 3), (70, 4183, 100, 1)):
            values: Dict[int, List[float]] = {0: [], 1: []}
            written = []
            for number in range(min(rounds, self.rounds)):
                for checkpoints in (number % 2, 1 - number % 2):
                    options = {"layers": 4, "width": width, "steps": steps}
                    seen = run(
                        self.toolkits[0],
                        self.directory,
                        "train.py",
                        2,
                        server=True,
                        hyperparameters={**options, "checkpoints": checkpoints},
                        timeout=240.0,
                    )
                    seen.exit()
                    values[checkpoints].append(seen.mean("steps_per_second"))
                    if checkpoints:
                        written.append(seen.marks[0]["checkpoints"])
            name = f"training with checkpoints, 2 hosts, {million} M parameters, compared with none"
            yield Row(name, "steps/s", values[1], values[0], target=0.965, higher_is_better=True)
            yield Row(f"checkpoints written, {million} M parameters", "", written)

    def restart(self) -> Iterator[Row]:
        """Kill a worker; compare the way to the next step with that of a job to its first one."""
        for hosts in (1, 2):
            starts, ways = [], []
            for _ in range(self.rounds):
                seen = run(self.toolkits[0], self.directory, "restart.py", hosts, server=True)
                seen.exit()
                starts.append(seen.last("step") - seen.began)
                ways.append(seen.last("again") - seen.marks[0]["fault"])
            where = "1 host" if hosts == 1 else f"{hosts} hosts"
            name = f"fault to the next step, {where}, compared with start to first"
            yield Row(name, "s", ways, starts, target=1.2)

    def save(self) -> Iterator[Row]:
        """Save a Module of 500 MB; write as many bytes plainly."""
        theirs: Dict[str, List[float]] = {}
        ours: Dict[str, List[float]] = {}
        for toolkit, figures in zip(self.toolkits, (ours, theirs)):
            environment = {**os.environ, "BENCHMARK_DIRECTORY": str(self.directory.parent)}
            command = [str(toolkit.python), str(CODE / "save.py"), str(self.rounds)]
            done = subprocess.run(command, env=environment, stdout=-1, stderr=-3, check=True)
            figures.update(json.loads(done.stdout))
        yield Row("save, 500 MB, compared with AWS's toolkit", "s", ours["save"], theirs["save"])
        name = "save, 500 MB, compared with write and fsync"
        yield Row(name, "s", ours["save"], ours["durable"], target=1.3)
        yield Row("save, 500 MB, compared with write", "s", ours["save"], ours["plain"])

    def channel(self) -> Iterator[Row]:
        """Join simulated hosts, and tell them of a failure. The peer has nothing of the kind."""
        for followers in (10, 100, 1000):
            often = 3 if followers == 1000 else 1
            rounds = [control.measured(followers) for _ in range(min(often, self.rounds))]
            for name, key, unit in (
                ("all joined", "join_s", "s"),
                ("a failure told to all", "broadcast_s", "s"),
                ("leader's CPU, idle", "leader_idle_cpu_percent", "%"),
                ("leader's memory", "leader_memory_mb", "MB"),
            ):
                values = [figures[key] for figures in rounds]
                yield Row(f"control channel, {followers} hosts: {name}", unit, values)


def _import(toolkit: Toolkit, module: str) -> Tuple[float, float]:
    """Return how long a new process takes to import a module, and its CPU time for it."""
    program = (
        "import time; clocks = (time.perf_counter, time.process_time); "
        f"began = [clock() for clock in clocks]; import {module}; "
        "print('\\n', *[clock() - since for clock, since in zip(clocks, began)])"
    )
    command = [str(toolkit.python), "-c", program]
    text = subprocess.run(command, cwd="/", stdout=-1, stderr=-3, check=True).stdout
    took, cpu = map(float, text.split()[-2:])
    return took, cpu


def _around(seen: Observed) -> Sample:
    """Return what the entrypoint takes before and after the script."""
    sample = {"first": seen.last("first") - seen.began, "exit": seen.exit() - seen.last("last")}
    if "step" in seen.marks[0]:
        sample["step"] = seen.last("step") - seen.began
    return sample


def main() -> None:
    """Take the figures that the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark.sh", description=__doc__)
    names = (
        "imports",
        "plain",
        "requirements",
        "steps",
        "fault",
        "training",
        "survival",
        "restart",
        "save",
        "channel",
    )
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--earlier", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement; default 5")
    parser.add_argument(
        "--only",
        action="append",
        choices=(*names, "large", "horovod"),
        metavar="NAME",
        help=f"{names}, large (takes 20 minutes), horovod (has to be built first)",
    )
    parser.add_argument("--json", action="store_true", help="for machines, with every value")
    options = parser.parse_args()
    command = ("sagemaker-mxnet-training", "train")
    module = "sagemaker_mxnet_training.training"
    ours = Toolkit("ours", Path(sys.executable), command, module)
    if options.earlier is not None:
        reference = Toolkit("earlier", options.earlier.absolute(), command, module)
    else:
        reference = Toolkit(
            "peer",
            options.peer.absolute(),
            ("train",),
            "sagemaker_mxnet_container.training",
            {"SAGEMAKER_TRAINING_MODULE": "sagemaker_mxnet_container.training:main"},
        )
    rows: List[Row] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        benchmark = Benchmark(ours, reference, directory / "job", options.rounds)
        for name in options.only or names:
            print(f"{time.monotonic() - began:5.0f} s  {name} ...", file=sys.stderr, flush=True)
            for row in getattr(benchmark, name)():
                if options.earlier is not None:
                    row = replace(row, target=0.0)  # noqa: PLW2901  (targets are the peer's)
                rows.append(row)
                print(f"        {line(row)}", file=sys.stderr, flush=True)
    minutes = (time.monotonic() - began) / 60
    if options.json:
        document = [{**row.__dict__, "ratio": row.ratio, "met": row.met} for row in rows]
        print(json.dumps({"machine": machine(), "minutes": minutes, "figures": document}, indent=2))
        return
    print(table(rows))
    print(f"\n{machine()}; {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
