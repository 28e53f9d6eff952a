"""Uploads files in the intermediate output directory to S3 while the job runs.

This uses sagemaker-training (``intermediate_output`` of 5.1.4): a file is uploaded each time its
writer closes it, and nothing is deleted in S3. If the directory already exists, SageMaker uploads
it, and this program does not.

A module for ``processes.program``, with the arguments ``--output s3://BUCKET/PREFIX [--region
REGION]``. It uploads until its stdin is closed.
"""

import argparse
import os
import tempfile
from typing import List, Optional

from sagemaker_mxnet_toolkit.code.fetch import s3_endpoint
from sagemaker_mxnet_toolkit.failure import FailureKind, JobError
from sagemaker_mxnet_toolkit.processes.child_report import Report, write_line


class SyncError(JobError):
    """Intermediate output cannot be uploaded."""

    kind = FailureKind.OUTPUT


def sync(output: str, region: Optional[str], report: Report) -> None:
    """Upload until stdin is closed.

    Args:
        output: ``s3://bucket/prefix``; for ``file://`` there is nothing to do.
        region: AWS region of the job; by default that of boto3's configuration.
        report: gets ``started`` when the directory is watched.

    Raises:
        ValueError: ``output`` has another scheme.
    """
    # Imports boto3, and creates directories below SAGEMAKER_BASE_DIR.
    from sagemaker_training import intermediate_output

    with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as private:
        # It ends when one of these files exists. The job's own files are written after the upload.
        end = os.path.join(private, "end")
        intermediate_output.success_file_path = end
        intermediate_output.failure_file_path = end
        copier = intermediate_output.start_sync(output, region, s3_endpoint(os.environ))
        report.event("started")
        if copier is None:
            write_line(f"not uploading to {output}: SageMaker does, or the files stay on this host")
            return
        write_line(f"uploading {intermediate_output.intermediate_path} to {output}")
        while os.read(0, 4096):
            pass
        with open(end, "w", encoding="utf-8"):
            pass
        copier.join()


def main(arguments: List[str], report: Report) -> None:
    """Upload intermediate output (see the module).

    Raises:
        SyncError: the upload failed.
    """
    parser = argparse.ArgumentParser(prog="sync", description="Upload intermediate output.")
    parser.add_argument("--output", required=True, metavar="URL")
    parser.add_argument("--region", metavar="REGION")
    options = parser.parse_args(arguments)
    try:
        sync(options.output, options.region, report)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SyncError(
            f"intermediate output cannot be uploaded to {options.output}: {reason}; "
            "expected s3://BUCKET/PREFIX in sagemaker_s3_output, and credentials for it"
        ) from error
