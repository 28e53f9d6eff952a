"""Known problems with MXNet 1.9.1, current CPython and NumPy 2, and their remedies.

``remarks`` are logged before an installation, for libraries that use MXNet.
``scripts/library-table.sh`` tries each library in a virtual environment and writes the remarks into
``docs/libraries.md``. ``remedy`` returns advice for the message of a failure.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Optional, Tuple

if TYPE_CHECKING:
    from sagemaker_mxnet_toolkit.requirements.requirement_file import Line


INSTALL_MXNET = "pip install 'graphviz<0.9' 'requests<3' && pip install --no-deps mxnet==1.9.1"
"""Command that installs MXNet without its requirement of NumPy 1."""

INSTALL_SERVING = "pip install 'sagemaker-mxnet-training[serving]'"
"""Command that installs the dependencies of the server."""


_AUTOGLUON = (
    "AutoGluon 1.x uses PyTorch instead of MXNet, and 0.3.1, the last version that uses MXNet, "
    "requires CPython 3.8 or older"
)

REMARKS: Dict[str, str] = {
    "autogluon": _AUTOGLUON,
    "autogluon-mxnet": _AUTOGLUON,
    "autogluon-tabular": _AUTOGLUON,
    "d2l": "d2l 1.0.3 also needs `numpy==1.23.5` and `ipython<9` in requirements.txt",
    "dgl": (
        "`dgl==1.1.1` is the last version whose MXNet backend works without PyTorch; set the "
        "variable `DGLBACKEND=mxnet`"
    ),
    "keras-mxnet": (
        "keras-mxnet 2.2.4.3 is the last version: save with `keras.models.save_mxnet_model`, as "
        "`load_model` needs h5py 2"
    ),
    "mxboard": (
        "mxboard 0.1.0 also needs `numpy<2.4` and `protobuf==5.28.3` in requirements.txt, and the "
        "variable `PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python`; its `add_graph` does not work"
    ),
    "onnx": "`mxnet.onnx` needs `onnx<1.19`, as it imports `onnx.mapping`",
}
"""A known problem of each library: one sentence without its full stop."""

_SOLVED_BY = {"onnx": "<1.19"}
"""Versions in ``requirements.txt`` without the problem."""


def remarks(lines: "Iterable[Line]") -> Tuple[str, ...]:
    """Return the remarks on the libraries in a requirements file."""
    found = []
    for line in lines:
        if line.requirement is None:
            continue
        # The canonical name (PEP 503).
        name = re.sub(r"[-_.]+", "-", line.requirement.name).lower()
        if name in REMARKS and str(line.requirement.specifier) != _SOLVED_BY.get(name):
            found.append(REMARKS[name])
    return tuple(dict.fromkeys(found))


def remedy(text: str) -> Optional[str]:
    """Return advice for a known failure, one sentence without its full stop, or ``None``.

    Args:
        text: the cause, and the traceback or the last lines of stderr.
    """
    for pattern, sentence in _FAILURES:
        match = re.search(pattern, text)
        if match is not None:
            return sentence(match)
    return None


def shared_memory() -> str:
    """Return advice for workers of a ``DataLoader`` that lack shared memory."""
    size = ""
    with contextlib.suppress(OSError):
        disk = os.statvfs("/dev/shm")
        size = f", which has {disk.f_blocks * disk.f_frsize / 2**20:.0f} MiB here"
    return (
        f"workers of a DataLoader send batches through /dev/shm{size}: make it larger (docker run "
        "--shm-size=2g), or use smaller batches, fewer num_workers, or thread_pool=True"
    )


def _removed_alias(match: "re.Match[str]") -> str:
    name = match[1]
    builtin = {"long": "int", "unicode": "str"}.get(name, name)
    if sys.version_info < (3, 12):
        return (
            f"NumPy 1.24 removed np.{name}: add numpy==1.23.5 to requirements.txt, or use "
            f"{builtin} in the code"
        )
    return (
        f"NumPy 1.24 removed np.{name}: use {builtin} in the code, or CPython 3.11 with "
        "numpy==1.23.5 (which does not support this CPython)"
    )


def _missing_module(match: "re.Match[str]") -> str:
    name, top = match[1], match[1].split(".")[0]
    if name == "mxnet":
        return f"run {INSTALL_MXNET}, or use an image that has MXNet"
    if name != top and importlib.util.find_spec(top) is not None:
        return f"add the version of {top} that the code was written for to requirements.txt"
    package = _PACKAGES.get(name) or _PACKAGES.get(top, top)
    return f"add {package} to requirements.txt, or put the module next to the script if it is yours"


def _installed_keras(match: "re.Match[str]") -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("keras-mxnet")
        return REMARKS["keras-mxnet"]
    return _moved_class(match)


def _moved_class(match: "re.Match[str]") -> str:
    return (
        "CPython 3.10 moved such names from collections to collections.abc: add a newer version "
        "of the library to requirements.txt"
    )


def _of(sentence: str) -> Callable[["re.Match[str]"], str]:
    return lambda match: sentence


_PACKAGES = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "distutils": "setuptools (CPython 3.12 has no distutils)",
    "google.protobuf": "protobuf",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Modules whose package has another name."""

_NUMPY_1 = (
    "this was written for NumPy 1: add numpy<2 or a newer version of the library to "
    "requirements.txt"
)
_REMOVED = "in1d|trapz|row_stack|float_|complex_|unicode_|string_|Inf|NaN|infty|product|cumproduct"

# The first match is used, so patterns for one library precede general ones.
_FAILURES: Tuple[Tuple[str, Callable[["re.Match[str]"], str]], ...] = (
    (
        r"bdb\.BdbQuit",
        _of("breakpoint() has no terminal here: use it with `local`, one host and a terminal"),
    ),
    (
        r"lib(?:xcb|GL|SM|Xext|Xrender|gthread)\S*: cannot open shared object file",
        _of(
            "opencv-python needs desktop libraries: replace it by opencv-python-headless in "
            "requirements.txt"
        ),
    ),
    (r"-packages/mxboard/(?s:.*)Descriptors cannot", _of(REMARKS["mxboard"])),
    (r"-packages/mxboard/(?s:.*)module 'numpy' has no attribute", _of(REMARKS["mxboard"])),
    (r"-packages/dgl/(?s:.*)No module named 'torch'", _of(REMARKS["dgl"])),
    (r"-packages/autogluon/(?s:.*)No module named '(?:torch|mxnet)", _of(_AUTOGLUON)),
    (r"-packages/d2l/(?s:.*)(?:module 'numpy' has no|IPython|inline)", _of(REMARKS["d2l"])),
    (r"No module named 'onnx\.mapping'", _of(REMARKS["onnx"])),
    (r"-packages/keras/(?s:.*)cannot import name '\w+' from 'collections'", _installed_keras),
    (r"cannot import name '\w+' from 'collections'", _moved_class),
    (r"module 'collections' has no attribute '[A-Z]\w+'", _moved_class),
    (
        r"(?:^|\W)module 'numpy' has no attribute "
        r"'(bool|int|float|complex|object|str|long|unicode)'",
        _removed_alias,
    ),
    (rf"module 'numpy' has no attribute '(?:{_REMOVED})'", _of(_NUMPY_1)),
    (r"was removed in the NumPy 2\.0 release", _of(_NUMPY_1)),
    (r"'numpy\.ndarray' object has no attribute 'tostring'", _of(_NUMPY_1)),
    (r"compiled using NumPy 1\.x|numpy\.core\.multiarray failed to import", _of(_NUMPY_1)),
    (r"_ARRAY_API not found|numpy\.dtype size changed", _of(_NUMPY_1)),
    (
        r"Descriptors cannot (?:not )?be created directly",
        _of(
            "a library was generated for an older protobuf: add protobuf<3.21 to requirements.txt, "
            "or set the variable PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python"
        ),
    ),
    (r"ModuleNotFoundError: No module named '([\w.]+)'", _missing_module),
    (
        r"\^M: bad interpreter|\\r'?: (?:No such file|command not found)|\r: not found"
        r"|cannot execute: required file not found",
        _of(
            "if the script has Windows line endings (CRLF), convert it: dos2unix, or "
            "sed -i 's/\\r$//' FILE"
        ),
    ),
    (
        r"(?s)^(?=.*/gluon/data/dataloader\.py).*TimeoutError",
        lambda match: (
            "a worker of the DataLoader sent no batch in time; " + shared_memory() + "; for slow "
            "transforms, DataLoader(timeout=SECONDS)"
        ),
    ),
    (
        r"ps-lite/src/van\.cc:\d+: Check failed: pb\.ParseFromArray",
        _of(
            "a program outside this job sent data to a port of the kvstore, which MXNet does not "
            "protect: restrict access to the job's hosts (with a security group or a private "
            "network), and look for port scanners and leftover processes"
        ),
    ),
    (r"\bSIGBUS\b", lambda match: shared_memory()),
    (r"No space left on device(?s:.*)(?:/dev/shm|multiprocessing)", lambda match: shared_memory()),
)
