"""``sagemaker-mxnet-training report RUN_DIR``: the summary on stdout, the page in a file."""

import os
import sys
from typing import Optional

from sagemaker_mxnet_training.report import summary, timelines

_BAD_INPUT = 2


def run(run_dir: str, output: Optional[str]) -> int:
    """Report on a job.

    Args:
        run_dir: where its timelines are: see ``timelines.find``.
        output: path of the page; ``report.html`` in ``run_dir`` by default.

    Returns:
        The exit status: 0; 1 when the page cannot be made; 2 when there is nothing to report on.
    """
    try:
        job = timelines.join([timelines.read(path) for path in timelines.find(run_dir)])
    except timelines.ReportError as error:
        return _complain(str(error), _BAD_INPUT)
    print(summary.text(job))
    path = output or os.path.join(run_dir, "report.html")
    try:
        from sagemaker_mxnet_training.report import page  # noqa: PLC0415  (not everybody has plotly)
    except ImportError as error:
        return _complain(
            f"no page: {error}; install what draws it: "
            "pip install 'sagemaker-mxnet-training[report]', or pip install 'plotly>=5,<7'",
            1,
        )
    try:
        _write(path, page.page(job, os.path.basename(os.path.abspath(run_dir))))
    except OSError as error:
        return _complain(f"no page: {path}: {error.strerror}", 1)
    print(f"\n  page    {path}")
    return 0


def _write(path: str, text: str) -> None:
    temporary = path + ".tmp"
    with open(temporary, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    os.replace(temporary, path)


def _complain(text: str, status: int) -> int:
    sys.stdout.flush()
    line = " ".join(text.split())
    print(f"sagemaker-mxnet-training report: {line}", file=sys.stderr)
    return status
