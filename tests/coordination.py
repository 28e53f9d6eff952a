"""What the unit tests of leader and follower put in place of a network and a supervisor."""

from typing import Any, Dict, List, Mapping, Tuple

from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import messages
from sagemaker_mxnet_training.cluster.channel import Post
from sagemaker_mxnet_training.cluster.coordination import Restart, Start, Step, Stop, Verdict
from sagemaker_mxnet_training.config.job import Job, Settings


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
        kvstore_hosts=tuple(f"algo-{number}" for number in range(1, hosts + 1)),
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
    """Notes its orders, and has no process that would keep it from obeying at once."""

    def __init__(self) -> None:
        self.orders: List[Any] = []
        self.coordinator: Any = None

    def start(self, order: Start) -> None:
        self.orders.append(order)

    def restart(self, order: Restart) -> None:
        self.orders.append(order)

    def leave(self) -> None:
        self.orders.append("leave")

    def stepped(self) -> None:
        self.orders.append("stepped")

    def stop(self, stop: Stop) -> None:
        self.orders.append(("stop", stop))

    def drain(self) -> None:
        self.orders.append("drain")

    def end(self, verdict: Verdict) -> None:
        self.orders.append(("end", verdict))


def kind(order: Any) -> str:
    """Return the name of an order that a ``FakeSupervisor`` noted."""
    if isinstance(order, (Start, Restart)):
        return type(order).__name__.lower()
    return str(order if isinstance(order, str) else order[0])


class Idle(FakeSupervisor):
    """A supervisor on which nothing runs: it has finished the moment that it is stopped."""

    def stop(self, stop: Stop) -> None:
        super().stop(stop)
        self.coordinator.report_step(Step.FINISHED)

    def drain(self) -> None:
        super().drain()
        self.coordinator.report_step(Step.DRAINED)


class FakeChannel:
    """Either end of the control channel: keeps what is sent, and posts what a test says."""

    def __init__(self, post: Post, members: Tuple[str, ...] = ()) -> None:
        self.post = post
        self.members = members
        self.sent: List[Tuple[str, Any]] = []
        self.obstacle = "not tried yet"
        self.undelivered = False
        self.left = False
        self.closed = False

    def send(self, *arguments: Any) -> None:
        """Take ``(host, body)`` from a leader or ``(body,)`` from a follower."""
        *host, body = arguments
        self.sent.append((host[0] if host else "algo-1", messages.decode(body)))

    def broadcast(self, body: Mapping[str, Any]) -> None:
        self.sent.append(("*", messages.decode(body)))

    def tick(self, now: float) -> float:
        return now + 60.0

    def pending(self) -> bool:
        return self.undelivered

    def goodbye(self) -> None:
        self.left = True

    def close(self) -> None:
        self.closed = True


class FakeLookup:
    """A lookup that a test answers."""

    def __init__(self, on_answer: Any = None) -> None:
        self.on_answer = on_answer
        self.address = ""
        self.invalid = False
        self.obstacle = "the name has not been resolved yet"

    def answer(self, address: str) -> None:
        self.address = address
        if self.on_answer is not None:
            self.on_answer(self)

    def close(self) -> None:
        pass
