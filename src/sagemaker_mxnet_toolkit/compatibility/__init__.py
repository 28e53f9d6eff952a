"""Compatibility of MXNet 1.9.1, its last release, with current CPython and NumPy.

MXNet requires NumPy below 1.24 and ``distutils``, which are not available on CPython 3.12. This
package changes what MXNet's own modules import. It does not change files, and it adds nothing to
NumPy or ``sys.modules``, which all code shares. The only exception is a function that MNIST scripts
use (``numpy_view.restore_fromstring``).

- ``import_hook``: a finder on ``sys.meta_path`` that gives MXNet's modules their own
  ``__import__``;
- ``numpy_view``: the module that they get for ``import numpy``;
- ``repairs``: patches for single modules of MXNet, and ``kvstore`` for its kvstore;
- ``deferred_imports``: loads SciPy and others when MXNet first uses them;
- ``import_cache``: caches the functions that MXNet generates at each import.

``sagemaker-mxnet-training.pth`` makes every interpreter call ``find_spec`` here when ``mxnet`` or
``horovod.mxnet`` is first imported. Neither this package nor MXNet nor NumPy is loaded before. The
job's processes also call ``install``, for installations whose ``.pth`` files are not read.

``SAGEMAKER_MXNET_COMPATIBILITY=0`` disables the package, and ``SAGEMAKER_MXNET_IMPORT_CACHE=0``
only the cache. The variables are read here, not in ``configuration``, since the package also works
in interpreters outside of jobs.

Facts are from the wheel ``mxnet-1.9.1-py3-none-manylinux2014_x86_64`` and from NumPy's release
notes: 1.20 (financial functions), 1.24 (``np.bool``), 2.0 (expired names, ``np.core``, NEP 50,
NEP 51, ufunc names), 2.3 (``tostring``, ``fromstring``), 2.4 (``in1d``, ``trapz``).
"""

from sagemaker_mxnet_toolkit.compatibility.import_hook import (
    NEWEST_NUMPY,
    NEWEST_PYTHON,
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
    "Status",
    "after_import",
    "enabled",
    "find_spec",
    "install",
    "status",
]
