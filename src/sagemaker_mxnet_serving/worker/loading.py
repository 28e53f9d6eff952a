"""Loads a model: calls the script's functions, and provides defaults for missing ones."""

import contextlib
import os
import platform
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

import msgspec
import mxnet
import numpy
import orjson

from sagemaker_mxnet_serving.inference import ModelError, ModelSettings, Request, Response
from sagemaker_mxnet_serving.model_directory import locate
from sagemaker_mxnet_serving.worker.array_handler import ArrayHandler
from sagemaker_mxnet_serving.worker.blocks import BlockModel
from sagemaker_mxnet_serving.worker.context import Context
from sagemaker_mxnet_serving.worker.executors import Executors
from sagemaker_mxnet_serving.worker.function_handler import FunctionHandler
from sagemaker_mxnet_serving.worker.saved_network import (
    ServedModule,
    network_in,
    network_of,
)
from sagemaker_mxnet_serving.worker.script import (
    Script,
    load_script,
    script_failed,
    show_log_records,
)
from sagemaker_mxnet_toolkit.tracebacks import cause_line

Predictor = Union[Executors, BlockModel]

_THREAD_EXIT_SECONDS = 0.5


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers requests; ``worker_process.load`` returns it.

    Attributes:
        settings: its settings.
        script: the script's functions.
        model: the model that the script's functions get: the result of ``model_fn``, or a
            ``Module`` of the model's files; None if no function gets it.
        predictor: predicts if no function of the script handles requests.
        handler: answers requests.
        kind: a description for messages.
        mxnet_threads: the threads of this process before the script was imported.
    """

    settings: ModelSettings
    script: Script
    model: Any
    predictor: Optional[Predictor]
    handler: Union[ArrayHandler, FunctionHandler]
    kind: str
    mxnet_threads: int

    @property
    def batchable(self) -> bool:
        """Whether requests may be batched: no function of the script handles them.

        Final after ``warm_up``, which may find that the outputs of a row depend on other rows.
        """
        return self.predictor is not None and self.predictor.joins

    def warm_up(self) -> None:
        """Predict zeros, if the shapes of the inputs are known, and call ``model_warmup_fn``.

        Raises:
            ModelError: one of these failed.
        """
        if self.predictor is not None:
            try:
                self.predictor.warm_up(joins=self.settings.max_batch > 1)
            except Exception as error:
                raise ModelError(
                    f"{self.kind} cannot predict zeros of the shapes that it was saved with: "
                    f"{cause_line(error)}"
                ) from error
        _call(self.script, self.settings, "model_warmup_fn", self.settings.model_dir, self.model)

    def started_threads(self) -> List[str]:
        """Return the names of running threads that the script has started.

        A forked process does not have them, and hangs if it waits for one. MXNet and OpenBLAS
        restart theirs after a fork; OpenMP, whose threads have no names, does not.
        """
        # A joined thread may take a moment to exit.
        deadline = time.monotonic() + _THREAD_EXIT_SECONDS
        while _count_threads() > self.mxnet_threads:
            if time.monotonic() >= deadline:
                names = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
                return names or ["native threads, such as OpenMP's"]
            time.sleep(0.01)
        return []

    def predict(self, requests: Sequence[Request]) -> List[Response]:
        """Return the responses to requests, in the same order; errors are responses too.

        Raises:
            SystemExit, KeyboardInterrupt: these end the process.
        """
        return self.handler.handle(requests)

    def describe(self) -> Mapping[str, Any]:
        """Return a description of the model, with values that JSON supports.

        Keys: ``model`` (its kind), ``directory``, ``inputs`` (each with ``name``, ``dtype`` and
        ``shape``, whose first entry, the rows, is None; an unknown shape is None), ``rows`` (how
        rows are batched), ``batchable``, ``device``, ``script`` (a path or None), ``functions``
        (names) and ``versions``.
        """
        inputs = self.handler.inputs
        rows = self.predictor.rows if self.predictor is not None else "passed to the script"
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
    """Import the script and load the model.

    Raises:
        ModelError: the model cannot be served.
    """
    mxnet_threads = _count_mxnet_threads()
    location = locate(settings.model_dir, settings.code_dir, settings.program)
    settings = replace(settings, model_dir=location.model_dir)
    # Scripts open files of the model by relative paths, and log.
    with contextlib.suppress(OSError):
        os.chdir(location.model_dir)
    show_log_records(settings.log_level)
    script = load_script(location, settings.program)
    _call(script, settings, "pre_model_fn", settings.model_dir)
    model, predictor, kind = _load(script, settings)
    handler: Union[ArrayHandler, FunctionHandler]
    if predictor is not None:
        handler = ArrayHandler(predictor, settings.accept)
    else:
        _check_can_predict(script, model, kind)
        ctx = device(settings)
        handler = FunctionHandler(script, model, settings.accept, ctx, settings.model_dir)
    return LoadedModel(settings, script, model, predictor, handler, kind, mxnet_threads)


def _count_mxnet_threads() -> int:
    """Return the number of threads of this process, including those of MXNet's engine."""
    mxnet.nd.zeros(1).wait_to_read()
    return _count_threads()


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _load(script: Script, settings: ModelSettings) -> Tuple[Any, Optional[Predictor], str]:
    """Return the model, the predictor if the script does not predict, and a description."""
    ctx, first = device(settings), settings.first_dimension
    if "model_fn" not in script.functions:
        network = network_in(settings.model_dir, ctx, first)
        kind = f"the saved network in {settings.model_dir}"
        if script.handles_requests:
            return ServedModule(network, only_first=first is not None), None, kind
        warmed = "model_warmup_fn" in script.functions
        model = ServedModule(network, only_first=first is not None) if warmed else None
        return model, Executors(network, only_first=first is not None), kind
    model = _call(script, settings, "model_fn", settings.model_dir)
    kind = f"{type(model).__name__} from model_fn of {script.path}"
    predictor: Optional[Predictor] = None
    if not script.handles_requests:
        if type(model) is mxnet.mod.Module:  # a subclass may override predict
            predictor = Executors(network_of(model, ctx, first), only_first=first is not None)
        elif isinstance(model, mxnet.gluon.Block):
            predictor = BlockModel(model, ctx)
    return model, predictor, kind


def _check_can_predict(script: Script, model: Any, kind: str) -> None:
    if script["predict_fn"] or script["transform_fn"]:
        return
    if isinstance(model, (mxnet.gluon.Block, ServedModule)):
        return
    if not isinstance(model, mxnet.mod.BaseModule):
        raise ModelError(
            f"{kind} cannot predict: return a bound mx.mod.Module or an mx.gluon.Block from "
            "model_fn, or define predict_fn or transform_fn"
        )
    if not (model.binded and model.params_initialized):
        raise ModelError(
            f"{kind} is not bound or has no parameters: call module.bind(for_training=False, ...) "
            "and module.set_params(...) in model_fn"
        )


def device(settings: ModelSettings) -> Any:
    """Return the device of a model's arrays; a worker sees one GPU at most."""
    return mxnet.gpu(0) if settings.gpus else mxnet.cpu()


def _call(script: Script, settings: ModelSettings, name: str, *arguments: Any) -> Any:
    """Call a function of the script; return None if it is not defined."""
    function = script[name]
    if function is None:
        return None
    context = Context(Request(id=name, body=b""), settings.model_dir, settings.gpus > 0)
    try:
        return function(*arguments, context=context)
    except (Exception, SystemExit) as error:
        raise script_failed(f"{name} of {script.path}", error) from error
