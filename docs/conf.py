"""The documentation site: Sphinx, with MyST for Markdown and the Furo theme."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "sagemaker-mxnet-training"
author = "the authors of sagemaker-mxnet-training"
copyright = f"{author}, Apache-2.0"
release = re.search(
    r'^__version__ = "(.+)"$',
    (ROOT / "src/sagemaker_mxnet_toolkit/__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

# Headings can be linked to, as on GitHub: page.md#heading.
myst_heading_anchors = 3
# Programs and terminals: no colours, or not the language that the lexer expects.
suppress_warnings = ["misc.highlighting_failure"]

# The reference is made of the docstrings alone: neither MXNet nor NumPy is imported for it.
autodoc_mock_imports = ["mxnet", "numpy"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
