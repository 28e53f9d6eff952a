"""Loads a model: the script's functions in their order, and a default for each that it lacks."""

import os
import platform
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple, Union

import msgspec
import mxnet
import numpy
import orjson

from sagemaker_mxnet_serving.array_handler import ArrayHandler
from sagemaker_mxnet_serving.blocks import BlockModel
from sagemaker_mxnet_serving.context import Context
from sagemaker_mxnet_serving.errors import ModelError
from sagemaker_mxnet_serving.executors import Executors
from sagemaker_mxnet_serving.function_handler import FunctionHandler
from sagemaker_mxnet_serving.messages import Request
from sagemaker_mxnet_serving.network import as_module, first_line, network_in, network_of
from sagemaker_mxnet_serving.script import Script, load_script, script_failed
from sagemaker_mxnet_serving.settings import ModelSettings

Predictor = Union[Executors, BlockModel]


@dataclass(frozen=True)
class LoadedModel:
    """A model with what answers its requests.

    Attributes:
        settings: which model it is.
        script: the user's functions.
        model: what the script's functions get: what ``model_fn`` returned, or a ``Module`` of the
            model's files; None where no function gets it.
        predictor: what predicts where no function of the user's takes part.
        handler: answers requests.
        kind: what it is, in words.
    """

    settings: ModelSettings
    script: Script
    model: Any
    predictor: Optional[Predictor]
    handler: Union[ArrayHandler, FunctionHandler]
    kind: str

    @property
    def batchable(self) -> bool:
        """Whether requests may be predicted together."""
        return self.predictor is not None and self.predictor.joins

    def warm_up(self) -> None:
        """Predict zeros, if the model's inputs are known, and call ``model_warmup_fn``.

        Raises:
            ModelError: when that fails.
        """
        if self.predictor is not None:
            try:
                self.predictor.warm_up(joins=self.settings.max_batch > 1)
            except Exception as error:
                raise ModelError(
                    f"{self.kind} does not predict: {first_line(error)}; "
                    "expected an answer to zeros of the shapes it was saved with"
                ) from error
        _call(self.script, self.settings, "model_warmup_fn", self.settings.model_dir, self.model)

    def describe(self) -> Dict[str, Any]:
        """Return what ``Service.describe`` promises."""
        inputs = self.handler.inputs
        rows = self.predictor.rows if self.predictor is not None else "as the script takes them"
        return {
            "model": self.kind,
            "directory": os.path.abspath(self.settings.model_dir),
            "inputs": [
                {
                    "name": each.name,
                    "shape": None if each.row is None else [None, *each.row],
                    "dtype": str(each.dtype),
                }
                for each in inputs
            ],
            "rows": rows,
            "batchable": self.batchable,
            "device": str(device(self.settings)),
            "script": self.script.path,
            "functions": sorted(self.script.functions),
            "versions": {
                "python": platform.python_version(),
                "mxnet": mxnet.__version__,
                "numpy": numpy.__version__,
                "msgspec": msgspec.__version__,
                "orjson": orjson.__version__,
            },
        }


def load_model(settings: ModelSettings) -> LoadedModel:
    """Import the script and load the model; ``service.load`` says more.

    Raises:
        ModelError: when the model cannot be served.
    """
    code_dir = settings.code_dir or os.path.join(settings.model_dir, "code")
    script = load_script(code_dir, settings.program, settings.model_dir)
    _call(script, settings, "pre_model_fn", settings.model_dir)
    model, predictor, kind = _load(script, settings)
    ctx = device(settings)
    if predictor is not None:
        return LoadedModel(
            settings, script, model, predictor, ArrayHandler(predictor, settings.accept), kind
        )
    _check_can_predict(script, model, kind)
    handler = FunctionHandler(script, model, settings.accept, ctx, settings.model_dir)
    return LoadedModel(settings, script, model, None, handler, kind)


def _load(script: Script, settings: ModelSettings) -> Tuple[Any, Optional[Predictor], str]:
    """Return the model, what predicts without the script, and what kind of model it is."""
    ctx, first = device(settings), settings.first_dimension
    if "model_fn" not in script.functions:
        network = network_in(settings.model_dir, ctx, first)
        kind = f"the saved network in {settings.model_dir}"
        if script.handles_requests:
            return as_module(network), None, kind
        model = as_module(network) if "model_warmup_fn" in script.functions else None
        return model, Executors(network, only_first=first is not None), kind
    model = _call(script, settings, "model_fn", settings.model_dir)
    kind = f"a {type(model).__name__} from model_fn of {script.path}"
    predictor: Optional[Predictor] = None
    if not script.handles_requests:
        if type(model) is mxnet.mod.Module:  # a subclass may predict in its own way
            predictor = Executors(network_of(model, ctx, first), only_first=first is not None)
        elif isinstance(model, mxnet.gluon.Block):
            predictor = BlockModel(model, ctx)
    return model, predictor, kind


def _check_can_predict(script: Script, model: Any, kind: str) -> None:
    if script["predict_fn"] or script["transform_fn"]:
        return
    if isinstance(model, mxnet.gluon.Block):
        return
    if not isinstance(model, mxnet.mod.BaseModule):
        raise ModelError(
            f"nothing predicts with {kind}: expected model_fn to return a bound mx.mod.Module or "
            "an mx.gluon.Block, or the script to define predict_fn or transform_fn"
        )
    if not (model.binded and model.params_initialized):
        raise ModelError(
            f"{kind} is not ready: expected a Module that is bound and has its parameters; call "
            "module.bind(for_training=False, ...) and module.set_params(...) in model_fn"
        )


def device(settings: ModelSettings) -> Any:
    """Return the context of a model's arrays: a worker sees one GPU, if there are any."""
    return mxnet.gpu(0) if settings.use_gpu else mxnet.cpu()


def _call(script: Script, settings: ModelSettings, name: str, *arguments: Any) -> Any:
    """Call a function of the script if it is defined; None if it is not."""
    function = script[name]
    if function is None:
        return None
    context = Context(Request(id=name, body=b""), settings.model_dir, settings.use_gpu)
    try:
        return function(*arguments, context=context)
    except (Exception, SystemExit) as error:
        raise script_failed(f"{name} of {script.path}", error) from error
