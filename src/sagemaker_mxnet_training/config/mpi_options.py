"""The configuration of Horovod: ``distribution={"mpi": ...}`` in the SageMaker SDK.

``sagemaker_mpi_custom_mpi_options`` has options for ``mpirun``, separated by blanks as in
sagemaker-training. This toolkit does not run ``mpirun``. It applies options that make sense without
Open MPI, ignores those that do not affect the result, and rejects those that would change the job.
"""

from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.settings.validation import Validator, argument_problem, integer, string
from sagemaker_mxnet_training.config.hyperparameters import Hyperparameters

_PROCESSES = integer(1, 1024, "a number of processes")
_OPTIONS = string("options of mpirun")

_WITHOUT_EFFECT = frozenset(
    (
        "allow-run-as-root",
        "display-allocation",
        "display-map",
        "nooversubscribe",
        "oversubscribe",
        "q",
        "quiet",
        "report-bindings",
        "tag-output",
        "timestamp-output",
        "v",
        "verbose",
    )
)
"""Options without a value that only change mpirun's output or checks."""

_PLACEMENT = {"bind-to": "none", "map-by": "slot", "rank-by": "slot"}
"""Options for the placement of processes, with the value that matches this toolkit."""

_OF_OPEN_MPI = frozenset(("mca", "gmca"))
"""Options with a name and a value that set a parameter of Open MPI."""

_SIZES = frozenset(("n", "np", "c", "N", "npernode", "ppn"))
_HOSTS = frozenset(("H", "host", "hostfile", "machinefile", "default-hostfile"))

RANK_VARIABLES = (
    *("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    *("HOROVOD_CROSS_RANK", "HOROVOD_CROSS_SIZE", "HOROVOD_HOSTNAME"),
    *("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS"),
    *("HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)
"""Variables that the job sets for each worker, which users cannot override."""


@dataclass(frozen=True)
class MpiOptions:
    """The result of parsing Open MPI options.

    Attributes:
        variables: variables for all workers.
        notes: log messages about ignored options.
        warnings: log messages about options that are not supported.
        faults: rejected options, each with the reason.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    notes: Tuple[str, ...] = ()
    warnings: Tuple[str, ...] = ()
    faults: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Horovod:
    """Options of a job that trains with Horovod.

    Attributes:
        processes_per_host: number of workers on each host.
        options: the parsed options for mpirun.
    """

    processes_per_host: int
    options: MpiOptions = field(default_factory=MpiOptions)


def read(
    parameters: Hyperparameters,
    hosts: int,
    gpus: int,
    environ: Mapping[str, str],
    check: Validator,
) -> Optional[Horovod]:
    """Return the options for Horovod, or ``None`` if it is not used.

    Args:
        parameters: the job's hyperparameters.
        hosts: number of hosts that train together.
        gpus: number of GPUs of this host, the default number of workers (at least one).
        environ: the environment of the job.
        check: collects faults.
    """
    if not parameters.flag("mpi_enabled", check):
        return None
    if parameters.flag("parameter_server_enabled", check):
        check.faults.add(
            "both MXNet's parameter server and MPI (Horovod) are enabled",
            parameters.parameter("mpi_enabled"),
            "one of sagemaker_parameter_server_enabled and sagemaker_mpi_enabled: in the SageMaker "
            "SDK either distribution={'parameter_server': ...} or distribution={'mpi': ...}",
        )
    number = parameters.parameter("mpi_num_of_processes_per_host")
    per_host = check.value(number, _PROCESSES, gpus or 1)
    total = parameters.parameter("mpi_num_processes")
    if total is not None and check.value(total, _PROCESSES, 0) not in (0, hosts * per_host):
        check.faults.add(
            "not the total number of processes on all hosts",
            total,
            f"{hosts * per_host}, {per_host} on each host, or remove this hyperparameter",
        )
    found = parameters.parameter("mpi_custom_mpi_options")
    options = parse(check.value(found, _OPTIONS, ""), environ)
    for fault in options.faults:
        check.faults.add(f"mpirun option {fault}", found, "options that docs/horovod.md lists")
    return Horovod(per_host, options)


def parse(line: str, environ: Mapping[str, str]) -> MpiOptions:
    """Parse options for mpirun.

    Args:
        line: the options, as ``custom_mpi_options`` of the SageMaker SDK.
        environ: the environment of the job, which workers inherit.
    """
    parser = _Parser(line.split(), environ)
    while parser.words:
        parser.read_option()
    if parser.parameters:
        names = ", ".join(parser.parameters)
        parser.notes.append(f"-mca {names}: ignored, since the job runs without Open MPI")
    return MpiOptions(
        parser.variables, tuple(parser.notes), tuple(parser.warnings), tuple(parser.faults)
    )


class _Parser:
    """Parses options from the front of ``words``."""

    def __init__(self, words: List[str], environ: Mapping[str, str]) -> None:
        self.words = words
        self.variables: Dict[str, str] = {}
        self.parameters: List[str] = []
        self.notes: List[str] = []
        self.warnings: List[str] = []
        self.faults: List[str] = []
        self._environ = environ

    def read_option(self) -> None:
        word = self.words.pop(0)
        name = word.lstrip("-")
        dashes = len(word) - len(name)
        if dashes not in (1, 2) or not name:
            self.faults.append(f"{word}: not an option; a second program cannot be started")
        elif name == "x":
            self._read_variable(word)
        elif name == "NCCL_DEBUG":
            self.variables["NCCL_DEBUG"] = self._value(word)
        elif name.startswith("NCCL_DEBUG="):
            self.variables["NCCL_DEBUG"] = name.partition("=")[2]
        elif name in _OF_OPEN_MPI:
            self.parameters.append(self._value(word))
            if self.words:
                self.words.pop(0)  # its value, which may be a negative number
        elif name in _PLACEMENT:
            value = self._value(word)
            if value and value != _PLACEMENT[name]:
                self.warnings.append(
                    f"{word} {value}: not supported, processes are not bound to CPUs"
                )
        elif name == "output-filename":
            value = self._value(word)
            self.warnings.append(f"{word} {value}: not supported, output is written to the log")
        elif name not in _WITHOUT_EFFECT:
            self._reject(word, name)

    def _read_variable(self, option: str) -> None:
        name, equals, value = self._value(option).partition("=")
        if name in RANK_VARIABLES:
            self.faults.append(f"{option} {name}: this variable is set by the job")
        elif name and equals and argument_problem(value):
            self.faults.append(f"{option} {name}: {argument_problem(value)}")
        elif name and equals:
            self.variables[name] = value
        elif name and name not in self._environ:
            self.notes.append(f"{option} {name}: ignored, since this variable is not set")

    def _reject(self, word: str, name: str) -> None:
        if name in _SIZES:
            why = "the number of processes is set by processes_per_host"
        elif name in _HOSTS:
            why = "the hosts are those of the job"
        else:
            why = "not supported, since the processes are started without mpirun"
        self.faults.append(f"{word}: {why}")
        if name in _SIZES | _HOSTS and self.words:
            self.words.pop(0)

    def _value(self, option: str) -> str:
        """Return the value of an option. If it is missing, this is a fault."""
        if self.words and not self.words[0].startswith("-"):
            return self.words.pop(0)
        self.faults.append(f"{option}: this option needs a value")
        return ""
