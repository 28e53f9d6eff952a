"""The files of a saved model: training writes them; serving, ``doctor`` and ``export`` find them.

The names that training writes are those that ``mx.model.load_checkpoint`` and SageMaker's MXNet
inference toolkit look for.
"""

import os
import re
import struct
from dataclasses import dataclass
from typing import Dict, List, Optional

from sagemaker_mxnet_toolkit.failure import FailureKind, JobError

SYMBOL, PARAMS, SHAPES = "model-symbol.json", "model-0000.params", "model-shapes.json"
"""The graph, the parameters, and a JSON list of ``{"name", "shape"}``, one for each input."""

# Magic numbers of a list of arrays and of an np-mode array (src/ndarray/ndarray.cc).
_LIST_MAGIC, _NUMPY_ARRAY_MAGIC = 0x112, 0xF993FACA

SAVED_BY = (
    "expected one pair of files NAME-symbol.json and NAME-0000.params, as training_utils.save, "
    "HybridBlock.export and Module.save_checkpoint write them"
)

_PARAMS = re.compile(r"(.+)-(\d{4}|[1-9]\d{4,})\.params")
_SYMBOL_ENDING = "-symbol.json"
_LISTED = 20


class ModelFilesError(JobError):
    """A directory does not hold exactly one saved model."""

    kind = FailureKind.MODEL


@dataclass(frozen=True)
class ModelFiles:
    """The files of one saved model.

    Attributes:
        prefix: common prefix of their paths, as ``mx.model.load_checkpoint`` takes it.
        epoch: number in the name of the parameter file.
    """

    prefix: str
    epoch: int

    @property
    def symbol(self) -> str:
        """Path of the graph."""
        return f"{self.prefix}{_SYMBOL_ENDING}"

    @property
    def params(self) -> str:
        """Path of the parameters."""
        return f"{self.prefix}-{self.epoch:04d}.params"

    @property
    def shapes(self) -> Optional[str]:
        """Path of the inputs' shapes, or ``None`` if they were not saved."""
        path = f"{self.prefix}-shapes.json"
        return path if os.path.isfile(path) else None


def find(model_dir: str) -> ModelFiles:
    """Find the saved model of a directory.

    The three files that ``training_utils.save`` writes take precedence. Otherwise there must be one
    pair of a graph and parameters, of which the highest epoch is used. If there is none, the
    subdirectories are searched, where ``tar -czf model.tar.gz my_model`` puts it.

    Raises:
        ModelFilesError: there is no such pair, or there are several.
    """
    if all(os.path.isfile(os.path.join(model_dir, name)) for name in (SYMBOL, PARAMS, SHAPES)):
        return ModelFiles(os.path.join(model_dir, "model"), 0)
    if not os.path.isdir(model_dir):
        raise ModelFilesError(f"{model_dir} is not a directory; {SAVED_BY}, in a directory")
    names = _names(model_dir)
    found = _pairs(model_dir) or [
        pair for name in names if name != "code" for pair in _pairs(os.path.join(model_dir, name))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(
            f"{os.path.relpath(pair.symbol, model_dir)} with {os.path.basename(pair.params)}"
            for pair in found[:_LISTED]
        )
        raise ModelFilesError(
            f"{model_dir} contains {len(found)} models: {listed}; expected one, remove the others"
        )
    for name in names:
        if name.endswith(_SYMBOL_ENDING):
            missing = f"{name[: -len(_SYMBOL_ENDING)]}-0000.params for {name}"
            break
        if _PARAMS.fullmatch(name):
            missing = f"{name.rpartition('-')[0]}{_SYMBOL_ENDING} for {name}"
            break
    else:
        missing = "saved model"
    raise ModelFilesError(
        f"there is no {missing} in {model_dir} "
        f"(found: {', '.join(names[:_LISTED]) or 'nothing'}); {SAVED_BY}"
    )


def has_numpy_shapes(path: str) -> bool:
    """Return whether a parameter file was saved under ``npx.set_np``.

    Raises:
        OSError: the file cannot be read.
    """
    head = struct.Struct("<QQQI")
    with open(path, "rb") as file:
        start = file.read(head.size)
    if len(start) < head.size:
        return False
    magic, _, count, array_magic = head.unpack(start)
    return bool(magic == _LIST_MAGIC and count and array_magic == _NUMPY_ARRAY_MAGIC)


def _pairs(directory: str) -> List[ModelFiles]:
    """Return the pairs of a graph and parameters directly in a directory."""
    names = _names(directory)
    epochs: Dict[str, int] = {}
    for match in filter(None, map(_PARAMS.fullmatch, names)):
        epochs[match[1]] = max(int(match[2]), epochs.get(match[1], 0))
    return [
        ModelFiles(os.path.join(directory, prefix), epoch)
        for prefix, epoch in epochs.items()
        if prefix + _SYMBOL_ENDING in names
    ]


def _names(directory: str) -> List[str]:
    """List a directory, without hidden files such as the ``._NAME`` that macOS adds to archives."""
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError:  # not a directory, or not readable, such as lost+found
        return []
