"""Copies files that appear in the intermediate output directory to S3, while the job runs.

The copying is sagemaker-training's (``intermediate_output`` of 5.1.4): a file is copied each time
its writer closes it, and nothing is ever deleted there. It leaves a directory alone that exists
already: the platform is copying that one itself.

Started as a program: ``python -u sync.py --output s3://BUCKET/PREFIX``, with stdin a pipe. When
that is closed, what is left is copied and the program ends.
"""

import argparse
import os
import sys
import tempfile

from sagemaker_mxnet_toolkit.code import s3
from sagemaker_mxnet_toolkit.processes.child_report import open_report
from sagemaker_mxnet_toolkit.progress import say


def sync(output: str) -> None:
    """Copy until stdin ends.

    Args:
        output: ``s3://bucket/prefix``; with ``file://`` there is nothing to do.

    Raises:
        ValueError: when it is neither.
    """
    # Imports boto3, and makes directories below SAGEMAKER_BASE_DIR.
    from sagemaker_training import intermediate_output  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="sagemaker-mxnet-") as private:
        # It ends when one of these files exists. The job's own would end it too late: they are
        # written last, when all output has been copied.
        end = os.path.join(private, "end")
        intermediate_output.success_file_path = end
        intermediate_output.failure_file_path = end
        region = s3.region(os.environ)
        copier = intermediate_output.start_sync(output, region, s3.endpoint(os.environ))
        if copier is None:
            say(f"nothing to copy to {output}: the platform does it, or the files stay here")
            return
        say(f"copying {intermediate_output.intermediate_path} to {output}")
        while os.read(0, 4096):
            pass
        with open(end, "w", encoding="utf-8"):
            pass
        copier.join()


def main() -> int:
    """Copy to where the command line says.

    Returns:
        The exit status: 0, or 1 after a failure that was reported.
    """
    parser = argparse.ArgumentParser(prog="sync", description="Copy intermediate output to S3.")
    parser.add_argument("--output", required=True, metavar="URL")
    arguments = parser.parse_args()
    report = open_report()
    try:
        sync(arguments.output)
    except Exception as error:
        report.failed(
            f"intermediate output cannot be copied to {arguments.output}: {error}; "
            "expected s3://BUCKET/PREFIX in sagemaker_s3_output, and credentials for it"
        )
        return 1
    return 0


if __name__ == "__main__":
    # The directory of this file is no place to import from.
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
    sys.exit(main())
