"""A ``.pth`` file beside the packages, and the license: what pyproject.toml cannot say."""

import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py

PTH = "sagemaker-mxnet-training.pth"


class BuildWithPth(build_py):
    """Put the ``.pth`` file beside the packages, which package data cannot do.

    It is listed among the outputs, so that a wheel records it and ``pip uninstall`` removes it, and
    among the sources, so that a source distribution contains it. An editable build has no place for
    it but the directory of its own ``.pth`` file.
    """

    def _source(self):
        return str(pathlib.Path("src") / PTH)

    def _pth(self):
        editable = getattr(self, "editable_mode", False)
        folder = self.get_finalized_command("install").install_lib if editable else self.build_lib
        return str(pathlib.Path(folder) / PTH)

    def run(self):
        """Build as usual, then copy the file."""
        super().run()
        self.copy_file(self._source(), self._pth(), preserve_mode=False)

    def get_outputs(self, *args, **kwargs):
        """Return the usual outputs and the file."""
        return [*super().get_outputs(*args, **kwargs), self._pth()]

    def get_source_files(self):
        """Return the usual sources and the file."""
        return [*super().get_source_files(), self._source()]


setup(license="Apache-2.0", cmdclass={"build_py": BuildWithPth})
