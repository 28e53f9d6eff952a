"""Jobs, and fakes of the network and the supervisor for the tests of leader and follower."""

from typing import Any, Dict, List, Optional, Tuple

from sagemaker_mxnet_toolkit.failure import ConfigurationError, Failure
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.events import (
    DrainRoles,
    End,
    HostState,
    StopScripts,
    Verdict,
)
from sagemaker_mxnet_training.config.configuration import Resolution
from sagemaker_mxnet_training.config.job import Job, Settings
from sagemaker_mxnet_training.control import wire


def job(current_host: str, hosts: int = 2, **settings: Any) -> Job:
    """Return a job as one of its hosts sees it; ``settings`` are fields of ``Settings``."""
    directories = (
        "base_dir", "entry_point", "module_dir", "code_dir", "model_dir", "input_dir",
        "input_config_dir", "output_dir", "output_data_dir", "output_intermediate_dir",
        "checkpoint_dir",
    )  # fmt: skip
    fields: Dict[str, Any] = dict.fromkeys(directories, "/nowhere")
    return Job(
        current_host=current_host,
        hosts=tuple(f"algo-{number}" for number in range(1, hosts + 1)),
        distributed_hosts=tuple(f"algo-{number}" for number in range(1, hosts + 1)),
        network_interface="",
        hyperparameters={},
        framework_parameters={},
        channels={},
        resource_config={},
        input_data_config={},
        num_gpus=0,
        num_cpus=1,
        visible_cpus=1,
        log_level=20,
        parameter_server=False,
        s3_output=None,
        region=None,
        job_name="job",
        settings=Settings(**settings),
        **fields,
    )


def checked(resolution: Resolution) -> Job:
    """Return the job of a configuration without faults; raise ``ConfigurationError`` for others."""
    if resolution.faults:
        raise ConfigurationError(resolution.faults)
    return resolution.job


class FakeClock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeLog(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: List[str] = []

    def __call__(self, role: str, text: str, level: int = 20) -> None:
        self.lines.append(text)


class FakeSupervisor:
    """Keeps its orders, and has no process that would keep it from obeying at once."""

    def __init__(self) -> None:
        self.orders: List[Any] = []
        self.coordinator: Any = None

    def obey(self, order: Any) -> None:
        self.orders.append(order)


class Idling(FakeSupervisor):
    """A supervisor on which nothing runs: it has finished the moment that it is stopped."""

    def obey(self, order: Any) -> None:
        super().obey(order)
        if isinstance(order, StopScripts):
            self.coordinator.report_state(HostState.FINISHED)
        elif isinstance(order, DrainRoles):
            self.coordinator.report_state(HostState.DRAINED)


class FakeMembers:
    """The leader's end of the control channel: keeps what is sent."""

    address = "0.0.0.0"
    listening = "0.0.0.0:8001"

    def __init__(self) -> None:
        self.sent: List[Tuple[str, Any]] = []
        self.looked_up: List[str] = []
        self.obstacles: Dict[str, str] = {}
        self.undelivered = False
        self.closed = False

    def send(self, message: Any, host: Optional[str] = None) -> None:
        wire.encode(message)
        self.sent.append((host or "*", message))

    def tick(self, now: float) -> float:
        return now + 60.0

    def pending(self) -> bool:
        return self.undelivered

    def look_up(self, hosts: Any) -> None:
        self.looked_up = list(hosts)

    def obstacle(self, host: str) -> str:
        return self.obstacles.get(host, f"{host} never connected")

    def close(self) -> None:
        self.closed = True


class FakeLeaderConnection:
    """A follower's end of the control channel: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: List[Any] = []
        self.joined = False
        self.own_address = ""
        self.obstacle = "the name has not been resolved yet"
        self.undelivered = False
        self.left = False
        self.closed = False

    def send(self, message: Any) -> None:
        assert self.joined
        wire.encode(message)
        self.sent.append(message)

    def tick(self, now: float) -> float:
        return now + 60.0

    def pending(self) -> bool:
        return self.undelivered

    def goodbye(self) -> None:
        self.left = True

    def close(self) -> None:
        self.closed = True


class CoordinatorHarness:
    """What the tests of leader and follower have in common: a coordinator and all around it."""

    coordinator: Any

    def __init__(self, supervisor: Optional[FakeSupervisor] = None) -> None:
        self.clock = FakeClock()
        self.log = FakeLog()
        self.supervisor = supervisor or FakeSupervisor()

    def wait(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass, with a turn of the loop now and then."""
        for _ in range(round(seconds / step)):
            self.clock.now += step
            self.coordinator.tick(self.clock.now)

    @property
    def orders(self) -> List[Any]:
        return self.supervisor.orders

    def end(self) -> Verdict:
        """Return the verdict, of which there is one."""
        ends = [order.verdict for order in self.orders if isinstance(order, End)]
        assert len(ends) == 1, self.orders
        return ends[0]

    def cause(self) -> Failure:
        failure = self.end().failure
        assert failure is not None
        return failure
