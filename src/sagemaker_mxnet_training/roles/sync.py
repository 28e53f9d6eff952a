"""Copies files that appear in the intermediate output directory to S3, while the job runs.

The copying is sagemaker-training's (``intermediate_output`` of 5.1.4): a file is copied each time
its writer closes it, and nothing is ever deleted there. It leaves a directory alone that exists
already: the platform is copying that one itself.

A module for ``processes.program``, with the arguments ``--output s3://BUCKET/PREFIX [--region
REGION]``, and with stdin a pipe. When that is closed, what is left is copied and the program ends.
"""

import argparse
import os
import tempfile
from typing import List, Optional

from sagemaker_mxnet_toolkit.code import s3
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_toolkit.progress import write_line


class SyncError(JobError):
    """Intermediate output cannot be copied."""

    kind = FailureKind.OUTPUT


def sync(output: str, region: Optional[str]) -> None:
    """Copy until stdin ends.

    Args:
        output: ``s3://bucket/prefix``; with ``file://`` there is nothing to do.
        region: AWS region of the job; ``None`` for that of boto3's own configuration.

    Raises:
        ValueError: when ``output`` is neither.
    """
    # Imports boto3, and makes directories below SAGEMAKER_BASE_DIR.
    from sagemaker_training import intermediate_output  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as private:
        # It ends when one of these files exists. The job's own would end it too late: they are
        # written last, when all output has been copied.
        end = os.path.join(private, "end")
        intermediate_output.success_file_path = end
        intermediate_output.failure_file_path = end
        copier = intermediate_output.start_sync(output, region, s3.endpoint(os.environ))
        if copier is None:
            write_line(f"nothing to copy to {output}: the platform does it, or the files stay here")
            return
        write_line(f"copying {intermediate_output.intermediate_path} to {output}")
        while os.read(0, 4096):
            pass
        with open(end, "w", encoding="utf-8"):
            pass
        copier.join()


def main(arguments: List[str], report: Report) -> None:
    """Copy to where the arguments say.

    Raises:
        SyncError: when that is impossible.
    """
    parser = argparse.ArgumentParser(prog="sync", description="Copy intermediate output to S3.")
    parser.add_argument("--output", required=True, metavar="URL")
    parser.add_argument("--region", metavar="REGION")
    options = parser.parse_args(arguments)
    try:
        sync(options.output, options.region)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SyncError(
            f"intermediate output cannot be copied to {options.output}: {reason}; "
            "expected s3://BUCKET/PREFIX in sagemaker_s3_output, and credentials for it"
        ) from error
