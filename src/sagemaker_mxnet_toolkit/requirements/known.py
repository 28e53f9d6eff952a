"""Libraries built on MXNet that need a remedy next to MXNet 1.9.1, CPython 3.11 and NumPy 2.

``scripts/library-table.sh`` tries each of them, in an environment of its own, and writes these
remarks into ``docs/libraries.md``.
"""

from dataclasses import dataclass
from typing import Dict, Iterable, Tuple

from packaging.utils import canonicalize_name

from sagemaker_mxnet_toolkit.requirements.requirement_file import Line


@dataclass(frozen=True)
class Remark:
    """What to know about a library.

    Attributes:
        text: one sentence without its full stop.
        versions: versions that it does not concern, as in ``requirements.txt``; empty for none.
    """

    text: str
    versions: str = ""


_AUTOGLUON = Remark(
    "AutoGluon 1.x has no MXNet (PyTorch took its place), and 0.3.1, the last version that trains "
    "with it, needs CPython below 3.9"
)

REMARKS: Dict[str, Remark] = {
    "autogluon": _AUTOGLUON,
    "autogluon-mxnet": _AUTOGLUON,
    "autogluon-tabular": _AUTOGLUON,
    "d2l": Remark("d2l 1.0.3 wants `numpy==1.23.5` and `ipython<9` named beside it"),
    "dgl": Remark(
        "`dgl==1.1.1` is the last version whose MXNet side works without PyTorch; set the variable "
        "`DGLBACKEND=mxnet`"
    ),
    "keras-mxnet": Remark(
        "keras-mxnet 2.2.4.3 is the last version; set the variable `KERAS_BACKEND=mxnet`, write "
        "`import collections.abc; collections.Iterable = collections.abc.Iterable` before "
        "`import keras`, and save with `keras.models.save_mxnet_model`: `load_model` needs h5py 2"
    ),
    "mxboard": Remark(
        "mxboard 0.1.0 wants `numpy<2.4` and `protobuf==5.28.3` named beside it, and the variable "
        "`PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python`; its `add_graph` does not work"
    ),
    "onnx": Remark(
        "`mxnet.onnx` wants `onnx<1.19`, as it imports `onnx.mapping`", versions="<1.19"
    ),
}


def remarks(lines: Iterable[Line]) -> Tuple[str, ...]:
    """Return a sentence for each library in a requirements file that needs a remedy."""
    found = []
    for line in lines:
        if line.requirement is None:
            continue
        remark = REMARKS.get(canonicalize_name(line.requirement.name))
        if remark and str(line.requirement.specifier) != (remark.versions or None):
            found.append(remark.text)
    return tuple(dict.fromkeys(found))
