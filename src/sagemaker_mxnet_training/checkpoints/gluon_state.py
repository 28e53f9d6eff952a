"""State of a training with ``mxnet.gluon.Trainer``.

Its private attributes are those of MXNet 1.9.1 (``gluon/trainer.py``), the last release.
"""

from typing import Any, Dict

from sagemaker_mxnet_training.checkpoints.errors import CheckpointError
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.resume import WEIGHTS, Source
from sagemaker_mxnet_training.checkpoints.training_state import (
    TrainingState,
    as_file,
    is_distributed,
)


class GluonState(TrainingState):
    """State of a network and its trainer.

    Args:
        job: the job.
        net: a ``gluon.Block``.
        trainer: the ``gluon.Trainer`` of its parameters.
    """

    def __init__(self, job: JobEnvironment, net: Any, trainer: Any) -> None:
        super().__init__(job)
        self._net = net
        self._trainer = trainer

    def open_distributed(self) -> Any:
        """Open the kvstore if it is a distributed one."""
        parameters = self._trainer._kvstore_params
        if not is_distributed(parameters["kvstore"]):
            return None
        if isinstance(parameters["kvstore"], str):
            import mxnet  # noqa: PLC0415

            parameters["kvstore"] = mxnet.kv.create(parameters["kvstore"])
        return parameters["kvstore"]

    @property
    def kvstore(self) -> Any:
        """The kvstore that training uses, if any."""
        return self._trainer._kvstore

    @property
    def started(self) -> bool:
        """Whether the optimizer is in its place."""
        return bool(self._trainer._kv_initialized)

    @property
    def update_on_kvstore(self) -> bool:
        """Whether the kvstore updates the weights."""
        return bool(self._trainer._update_on_kvstore)

    def weights(self) -> Dict[str, Any]:
        """Return the weights by name."""
        parameters = self._net._collect_params_with_prefix()
        return {name: _data(parameter) for name, parameter in parameters.items()}

    def local_updater(self) -> Any:
        """Return the updater of this process."""
        trainer = self._trainer
        return trainer._kvstore._updater if self.update_on_kvstore else trainer._updaters[0]

    def settings(self) -> Dict[str, Any]:
        """Return the gradient scale, and that of mixed precision."""
        scaler = getattr(self._trainer, "_amp_loss_scaler", None)
        return {
            "rescale_grad": self._trainer._optimizer.rescale_grad,
            "loss_scaler": None if scaler is None else vars(scaler),
        }

    def restore(self, source: Source) -> None:
        """Restore all, before the first step.

        Raises:
            CheckpointError: when the checkpoint is one of another network or optimizer.
        """
        trainer, settings = self._trainer, source.about["settings"]
        self._reset_layouts()
        with as_file(source.read(WEIGHTS)) as path:
            try:
                self._net.load_parameters(path)
            except (AssertionError, ValueError) as error:
                raise CheckpointError(f"{source.name} is of another network: {error}") from error
        # Sent to the servers with the optimizer; a change of it after that is refused.
        trainer._optimizer.rescale_grad = settings["rescale_grad"]
        if settings["loss_scaler"] is not None and hasattr(trainer, "_amp_loss_scaler"):
            vars(trainer._amp_loss_scaler).update(settings["loss_scaler"])
        trainer._init_kvstore()
        trainer._init_params()  # gives the kvstore the weights of rank 0: the restored ones
        self.restore_optimizer(source)

    def _reset_layouts(self) -> None:
        """Give all weights MXNet's plain layout.

        A network that has predicted has weights of convolutions in oneDNN's, copies into them leave
        it so, and ``KVStore.init`` cannot send such a weight: it is never on the servers, and the
        first pull of it ends them ("init 1 first"). An operator's result is in the plain one.
        """
        import mxnet  # noqa: PLC0415

        for parameter in self._net.collect_params().values():
            if parameter._data is not None and parameter._stype == "default":
                for array in parameter.list_data():
                    plain = array.as_nd_ndarray()
                    mxnet.nd.zeros(plain.shape, plain.context, plain.dtype, out=plain)

    def restore_local_states(self, states: bytes) -> None:
        """Restore the state of the updaters of this process."""
        trainer = self._trainer
        updaters = [self.local_updater()] if self.update_on_kvstore else trainer._updaters
        for updater in updaters:
            updater.set_states(states)
            updater.optimizer = updaters[0].optimizer
        trainer._optimizer = updaters[0].optimizer
        trainer._optimizer.param_dict = dict(enumerate(trainer._params))


def _data(parameter: Any) -> Any:
    # The devices hold the same; an average of three would not be it.
    dense = parameter._stype == "default"
    array = parameter.list_data()[0] if dense else parameter._reduce()
    return array.as_nd_ndarray()
