"""The state of a training with ``mxnet.gluon.Trainer``.

It uses private attributes of MXNet 1.9.1 (``gluon/trainer.py``), the last release.
"""

from typing import Any, Callable, Dict, List, Sequence

import mxnet
from mxnet import gluon

from sagemaker_mxnet_training.checkpoints import block_inputs
from sagemaker_mxnet_training.checkpoints.checkpoint_file import (
    START_AFRESH,
    CheckpointError,
    weights_name,
)
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.resume import CheckpointReader
from sagemaker_mxnet_training.checkpoints.training_state import (
    TrainingState,
    as_file,
    byte_count,
    is_distributed,
)


class GluonState(TrainingState):
    """State of networks and their trainers.

    Args:
        job: the job.
        nets: each a ``gluon.Block``.
        trainers: each a ``gluon.Trainer``, of parameters of ``nets``.

    Raises:
        TypeError: an argument has another type.
        ValueError: training has already started.
        CheckpointError: the state cannot be stored in a checkpoint.
    """

    def __init__(self, job: JobEnvironment, nets: Sequence[Any], trainers: Sequence[Any]) -> None:
        super().__init__(job)
        self._nets = nets
        self._trainers = trainers
        self._check_arguments()

    def _check_arguments(self) -> None:
        for things, kind in ((self._nets, gluon.Block), (self._trainers, gluon.Trainer)):
            for each in things:
                if not isinstance(each, kind):
                    name = f"gluon.{kind.__name__}"
                    raise TypeError(f"expected a {name}, or a list of them, got {each!r}")
        if self.started:
            raise ValueError("create the Checkpoint before the first step of its trainer")
        known = {id(each) for net in self._nets for each in _parameters(net).values()}
        for trainer in self._trainers:
            others = [each.name for each in trainer._params if id(each) not in known]
            if others:
                raise CheckpointError(
                    f"the trainer updates parameters that are not in the network: "
                    f"{', '.join(others[:3])}{', ...' if others[3:] else ''}; pass all networks "
                    "to the Checkpoint: Checkpoint([net, other], trainer)"
                )
            kvstore = trainer._kvstore_params["kvstore"]
            if len(self._trainers) > 1 and is_distributed(kvstore):
                raise CheckpointError(
                    "several trainers cannot share a distributed kvstore: in MXNet 1.9.1 its "
                    "servers have one optimizer, and all trainers use the same keys; use one "
                    "trainer for all parameters, or kvstore='device' on one host"
                )

    def follow_updates(self, updated: Callable[[], None]) -> None:
        """Call ``updated`` after each step of a trainer."""
        for trainer in self._trainers:
            trainer._update = _then_call(trainer._update, updated)

    def open_distributed(self) -> Any:
        """Create the kvstore if it is a distributed one, and return it."""
        parameters = self._trainers[0]._kvstore_params
        if not is_distributed(parameters["kvstore"]):
            return None
        if isinstance(parameters["kvstore"], str):
            parameters["kvstore"] = mxnet.kv.create(parameters["kvstore"])
        return parameters["kvstore"]

    @property
    def kvstore(self) -> Any:
        """The kvstore that training uses, or ``None``."""
        return self._trainers[0]._kvstore

    @property
    def started(self) -> bool:
        """Whether training has started."""
        return any(trainer._kv_initialized for trainer in self._trainers)

    @property
    def update_on_kvstore(self) -> bool:
        """Whether the kvstore updates the weights."""
        return bool(self._trainers[0]._update_on_kvstore)

    def weights(self) -> List[Dict[str, Any]]:
        """Return the weights of each network by name."""
        return [
            {name: _data(parameter) for name, parameter in _parameters(net).items()}
            for net in self._nets
        ]

    @property
    def size(self) -> int:
        """Total size of the initialized weights in bytes."""
        arrays = [
            parameter.list_data()[0]
            for net in self._nets
            for parameter in _parameters(net).values()
            if parameter._data is not None and parameter._stype == "default"
        ]
        return sum(map(byte_count, arrays))

    def optimizers(self) -> List[Any]:
        """Return the optimizer of each trainer."""
        return [trainer._optimizer for trainer in self._trainers]

    def local_updaters(self) -> List[Any]:
        """Return the updater of each trainer in this process."""
        return [_updaters(trainer)[0] for trainer in self._trainers]

    def settings(self) -> Dict[str, Any]:
        """Return the inputs of each network, and the gradient scales of each trainer."""
        return {
            "networks": len(self._nets),
            "inputs": [block_inputs.records(net) for net in self._nets],
            "scales": [_scales(each) for each in self._trainers],
        }

    def restore(self, checkpoint: CheckpointReader) -> None:
        """Restore everything, before the first step.

        Raises:
            CheckpointError: the checkpoint belongs to other networks or optimizers.
        """
        settings = checkpoint.about["settings"]
        scales = settings.get("scales", [settings])  # release 5.0 supported one trainer
        networks = settings.get("networks", 1)
        if networks != len(self._nets):
            raise CheckpointError(
                f"{checkpoint.name} contains the weights of {networks} networks, but this script "
                f"has {len(self._nets)}; pass the same networks, or {START_AFRESH}"
            )
        self.check_optimizers_match(checkpoint)
        self._reset_layouts()
        for number, net in enumerate(self._nets):
            with as_file(checkpoint.read(weights_name(number))) as path:
                try:
                    _load_parameters(net, path)
                except (AssertionError, ValueError) as error:
                    raise CheckpointError(
                        f"{checkpoint.name} belongs to another network: {error}; build the network "
                        f"as before, or {START_AFRESH}"
                    ) from error
        for net, records in zip(self._nets, settings.get("inputs", ())):
            block_inputs.restore(net, records)
        for trainer, scale in zip(self._trainers, scales):
            trainer._optimizer.rescale_grad = scale["rescale_grad"]
            if scale["loss_scaler"] is not None and hasattr(trainer, "_amp_loss_scaler"):
                vars(trainer._amp_loss_scaler).update(scale["loss_scaler"])
            trainer._init_kvstore()
            trainer._init_params()  # sends the restored weights of rank 0 to the kvstore
        self.restore_optimizer(checkpoint)

    def _reset_layouts(self) -> None:
        """Convert all weights to MXNet's default layout.

        After a prediction, the weights of convolutions have oneDNN's layout, which ``KVStore.init``
        cannot send: the weight is missing on the servers, and the first pull ends them ("init 1
        first"). The result of an operator has the default layout.
        """
        for net in self._nets:
            for parameter in net.collect_params().values():
                if parameter._data is not None and parameter._stype == "default":
                    for array in parameter.list_data():
                        plain = array.as_nd_ndarray()
                        mxnet.nd.zeros(plain.shape, plain.context, plain.dtype, out=plain)

    def restore_local_states(self, states: Sequence[bytes]) -> None:
        """Restore the state of the updaters of this process."""
        for trainer, state in zip(self._trainers, states):
            updaters = _updaters(trainer)
            for updater in updaters:
                updater.set_states(state)
                updater.optimizer = updaters[0].optimizer
            trainer._optimizer = updaters[0].optimizer
            trainer._optimizer.param_dict = dict(enumerate(trainer._params))


def _updaters(trainer: Any) -> List[Any]:
    return [trainer._kvstore._updater] if trainer._update_on_kvstore else list(trainer._updaters)


def _scales(trainer: Any) -> Dict[str, Any]:
    scaler = getattr(trainer, "_amp_loss_scaler", None)
    return {
        "rescale_grad": trainer._optimizer.rescale_grad,
        "loss_scaler": None if scaler is None else vars(scaler),
    }


def _parameters(net: Any) -> Dict[str, Any]:
    parameters: Dict[str, Any] = net._collect_params_with_prefix()
    return parameters


def _load_parameters(net: Any, path: str) -> None:
    parameters = _parameters(net)
    if not mxnet.util.is_np_array() or any("." in name for name in parameters):
        net.load_parameters(path)
        return
    # A single layer has names without a dot. MXNet 1.9.1 expects an older format for these, and
    # fails to assign its arrays to those of NumPy's semantics.
    with mxnet.util.np_array(False):
        arrays = mxnet.nd.load(path)
    if arrays.keys() != parameters.keys():
        raise ValueError(f"it has {sorted(arrays)}, this one has {sorted(parameters)}")
    for name, array in arrays.items():
        parameters[name]._load_init(array.as_np_ndarray(), None)


def _then_call(update: Callable[..., Any], updated: Callable[[], None]) -> Callable[..., Any]:
    def update_and_call(*arguments: Any, **options: Any) -> None:
        update(*arguments, **options)
        updated()

    return update_and_call


def _data(parameter: Any) -> Any:
    # All devices have the same values, and averaging them would add rounding errors.
    dense = parameter._stype == "default"
    array = parameter.list_data()[0] if dense else parameter._reduce()
    return array.as_nd_ndarray()
