"""Keeps MXNet 1.9.1, its last release, importable and right on current CPython and NumPy, and fast.

MXNet asks for NumPy below 1.24 and for ``distutils``; both are gone where CPython 3.12 and NumPy
2 are. Nothing is patched on disk and nothing is added to NumPy, whose namespace, like
``sys.modules``, is every program's. What changes is what MXNet's own modules *see*, and one
function that scripts read MNIST with (``numpy_view.mend_fromstring``):

- ``import_hook``: the finder on ``sys.meta_path`` that gives each of MXNet's modules builtins with
  an ``__import__`` of its own;
- ``numpy_view``: what that answers to ``import numpy``;
- ``repairs``: changes to single modules of MXNet;
- ``deferred_imports``: SciPy and others, loaded once MXNet uses them;
- ``operators``: the functions that MXNet generates at each import, from a cache;
- ``cache_file``: where that cache is, and when it is trusted.

``sagemaker-mxnet-training.pth`` makes every interpreter call ``find_spec`` here when ``mxnet`` is
first imported, and not before: neither this package nor MXNet nor NumPy is loaded until then. The
job's processes call ``install`` as well, for installations whose ``.pth`` files are not read.

``SAGEMAKER_MXNET_COMPATIBILITY=0`` switches it off, and ``SAGEMAKER_MXNET_IMPORT_CACHE=0`` the
cache alone. The variables are read here, not in ``configuration``, since this package also serves
interpreters that run no job.

Facts are those of the wheel ``mxnet-1.9.1-py3-none-manylinux2014_x86_64`` and of NumPy's release
notes: 1.20 (financial functions), 1.24 (``np.bool``), 2.0 (expired names, ``np.core``, NEP 50,
NEP 51, ufunc names), 2.3 (``tostring``, ``fromstring``), 2.4 (``in1d``, ``trapz``).
"""

from sagemaker_mxnet_toolkit.compatibility.import_hook import (
    NEWEST_NUMPY,
    NEWEST_PYTHON,
    VARIABLE,
    Status,
    after_import,
    enabled,
    find_spec,
    install,
    status,
)

__all__ = [
    "NEWEST_NUMPY",
    "NEWEST_PYTHON",
    "VARIABLE",
    "Status",
    "after_import",
    "enabled",
    "find_spec",
    "install",
    "status",
]
