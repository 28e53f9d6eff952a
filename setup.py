"""Package definition. Tool settings live in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "src/sagemaker_mxnet_toolkit/__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)

PTH = "sagemaker-mxnet-training.pth"


class BuildWithPth(build_py):
    """Put the ``.pth`` file beside the packages, which package data cannot do.

    It is listed among the outputs, so that a wheel records it and ``pip uninstall`` removes it.
    An editable build gives no place for it but the one its own ``.pth`` file goes to.
    """

    def _pth(self):
        editable = getattr(self, "editable_mode", False)
        folder = self.get_finalized_command("install").install_lib if editable else self.build_lib
        return str(pathlib.Path(folder) / PTH)

    def run(self):
        """Build as usual, then copy the file."""
        super().run()
        self.copy_file(str(HERE / "src" / PTH), self._pth(), preserve_mode=False)

    def get_outputs(self, *args, **kwargs):
        """Return what is built as usual, and the file."""
        return [*super().get_outputs(*args, **kwargs), self._pth()]


# What `sagemaker-mxnet-training serve` needs: httptools and uvloop for HTTP, msgspec and orjson for
# JSON.
SERVING = [
    "httptools>=0.6,<1",
    "msgspec>=0.18",
    "orjson>=3.10",
    "prometheus-client>=0.21,<1",
    "uvloop>=0.21,<1",
]

setup(
    name="sagemaker-mxnet-training",
    version=VERSION,
    description="Trains and serves Apache MXNet models, on Amazon SageMaker and elsewhere",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.8,<3.14",
    package_dir={"": "src"},
    packages=find_packages("src"),
    cmdclass={"build_py": BuildWithPth},
    package_data={
        name: ["py.typed"]
        for name in (
            "sagemaker_mxnet_serving",
            "sagemaker_mxnet_toolkit",
            "sagemaker_mxnet_training",
        )
    },
    install_requires=[
        "sagemaker-training>=5.1,<6",
        "numpy",
        "packaging>=22",
        "psutil",
        "retrying",
    ],
    extras_require={
        # NumPy 1.x, which mxnet's metadata asks for, has no wheel for CPython 3.13: there, and for
        # NumPy 2.x anywhere, `pip install --no-deps mxnet==1.9.1` follows (see scripts/install.sh).
        "mxnet": [
            "mxnet==1.9.1; python_version < '3.13'",
            "graphviz>=0.8.1,<0.9",
            "requests>=2.20,<3",
        ],
        # What draws the page of `sagemaker-mxnet-training report`; images do not need it.
        "report": ["plotly>=5,<7"],
        # `sagemaker-mxnet-training export`; MXNet imports `onnx.mapping`, gone from onnx 1.19.
        "onnx": ["onnx>=1.13,<1.19", "onnxruntime"],
        "serving": SERVING,
        "test": [
            "coverage",
            "hypothesis",
            "moto[server,s3]",
            "mypy",
            "onnx>=1.13,<1.19",
            "onnxruntime",
            "plotly>=5,<7",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            *SERVING,
        ],
    },
    entry_points={
        "console_scripts": ["sagemaker-mxnet-training = sagemaker_mxnet_training.cli:main"],
    },
)
