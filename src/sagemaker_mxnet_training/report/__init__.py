"""Reports on a job, from the timelines of its hosts: a summary as text, and an HTML page."""

import os
import sys
from typing import Optional

from sagemaker_mxnet_toolkit.atomic_files import write_text
from sagemaker_mxnet_training.report import summary, timelines

_BAD_INPUT = 2


def run(run_dir: str, output: Optional[str]) -> int:
    """Report on a job.

    Args:
        run_dir: the directory with its timelines (see ``timelines.find``).
        output: path of the page; ``report.html`` in ``run_dir`` by default.

    Returns:
        The exit status: 0; 1 if the page cannot be written; 2 if there are no timelines.
    """
    try:
        job = timelines.join([timelines.read(path) for path in timelines.find(run_dir)])
    except timelines.ReportError as error:
        return _fail(str(error), _BAD_INPUT)
    print(summary.text(job))
    path = output or os.path.join(run_dir, "report.html")
    try:
        from sagemaker_mxnet_training.report import page  # plotly is optional
    except ImportError as error:
        return _fail(
            f"cannot create the page: {error}; "
            "pip install 'sagemaker-mxnet-training[report]', or pip install 'plotly>=5,<7'",
            1,
        )
    try:
        text = page.page(job, os.path.basename(os.path.abspath(run_dir)))
        write_text(path, text, flush=False)
    except OSError as error:
        return _fail(f"cannot write the page: {path}: {error.strerror}", 1)
    print(f"\n  page    {path}")
    return 0


def _fail(text: str, status: int) -> int:
    sys.stdout.flush()
    line = " ".join(text.split())
    print(f"sagemaker-mxnet-training report: {line}", file=sys.stderr)
    return status
