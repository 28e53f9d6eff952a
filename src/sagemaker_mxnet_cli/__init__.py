"""The program ``sagemaker-mxnet-training``."""

import sys


def main() -> None:
    """Run the program. Ctrl-C ends it without a traceback, also while modules are imported."""
    try:
        from sagemaker_mxnet_cli import command_line

        command_line.main()
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as command_line
