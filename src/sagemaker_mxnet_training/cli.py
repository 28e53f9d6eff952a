"""The command line: ``sagemaker-mxnet-training COMMAND``, see ``_COMMANDS``."""

import os
import signal
import sys
from typing import TYPE_CHECKING, List, NoReturn, Optional

from sagemaker_mxnet_training import __version__

if TYPE_CHECKING:
    import argparse

_USAGE = 2
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127

_EPILOG = """\
A first word that is none of these is executed as a command, as official images do:
  docker run IMAGE python -V
"""


def main(arguments: Optional[List[str]] = None) -> NoReturn:
    """Run the program; exit with its status (2 for wrong usage).

    Args:
        arguments: the words after the program's name; ``sys.argv`` by default.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words == ["train"]:
        _train()  # at once: every host of every job begins with it
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        _execute(words)
    options = _parser().parse_args(words)
    if "run" not in options:
        _parser().print_help(sys.stderr)
        sys.exit(_USAGE)
    try:
        status = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has gone. Python would flush once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _parser() -> "argparse.ArgumentParser":
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="sagemaker-mxnet-training",
        description="Trains and serves Apache MXNet models, on Amazon SageMaker and elsewhere.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands")
    train = commands.add_parser(
        "train",
        help="run the job that SM_* variables and /opt/ml describe (SageMaker calls this)",
    )
    train.set_defaults(run=lambda options: _train())
    serve = commands.add_parser(
        "serve", help="answer requests with a saved model (SageMaker calls this)"
    )
    _add_serve(serve)
    serve.set_defaults(run=_serve)
    local = commands.add_parser(
        "local", help="run a job on this machine, each host as a process, without Docker"
    )
    _add_local(local)
    local.set_defaults(run=_local)
    report = commands.add_parser(
        "report", help="show what a local run looked like: a summary, and an HTML page"
    )
    report.add_argument("run_dir", metavar="RUN_DIR", help="the run's directory")
    report.add_argument(
        "--output", metavar="FILE", help="the page (default: report.html in RUN_DIR)"
    )
    report.set_defaults(run=_report)
    export = commands.add_parser(
        "export", help="write a saved model as ONNX, checked against MXNet"
    )
    export.add_argument("model_dir", metavar="MODEL_DIR", help="what training_utils.save wrote")
    export.add_argument("--onnx", metavar="FILE", required=True, help="the file to write")
    export.set_defaults(run=_export)
    doctor = commands.add_parser(
        "doctor", help="tell what this environment is, and whether a job could run in it"
    )
    form = doctor.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument(
        "--model-dir",
        metavar="DIR",
        help="also tell whether the model in DIR could be served: its script is executed, and the "
        "exit status is about the model alone",
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _add_local(parser: "argparse.ArgumentParser") -> None:
    parser.add_argument("script", metavar="SCRIPT", help="the entry point: train.py, train.sh, ...")
    parser.add_argument("--hosts", metavar="N", default="1", help="1 to 64 hosts (default: 1)")
    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "--parameter-server",
        action="store_true",
        default=None,
        help="start MXNet's kvstore (default with more than one host)",
    )
    server.add_argument(
        "--no-parameter-server",
        dest="parameter_server",
        action="store_false",
        help="do not start it",
    )
    parser.add_argument(
        "--channel",
        metavar="NAME=DIR",
        action="append",
        default=[],
        help="an input channel, in SM_CHANNEL_<NAME>; may be repeated",
    )
    parser.add_argument(
        "--hyperparameter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of the script, --NAME VALUE; VALUE is JSON, or else text; "
        "may be repeated",
    )
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable for all hosts; may be repeated",
    )
    parser.add_argument(
        "--source-dir",
        metavar="DIR",
        help="the code that hosts get (default: the directory of SCRIPT)",
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where hosts have their /opt/ml (default: runs/<script>-<time>)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint of the earlier run in --run-dir",
    )


def _train() -> NoReturn:
    from sagemaker_mxnet_toolkit.processes import process  # noqa: PLC0415
    from sagemaker_mxnet_training import training  # noqa: PLC0415  (--help must be fast)

    status = training.train(os.environ, process.own_start())
    sys.stdout.flush()
    # Nothing is left to do, and to take the interpreter down takes longer than to end a job.
    os._exit(status)


def _add_serve(parser: "argparse.ArgumentParser") -> None:
    parser.add_argument(
        "--model-dir",
        metavar="DIR",
        help="serve the model in DIR, to this machine only (default: /opt/ml/model, to everybody)",
    )
    parser.add_argument("--host", metavar="ADDRESS", help="listen on this address instead")
    parser.add_argument("--port", metavar="N", type=int, help="listen on this port (default: 8080)")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="number of worker processes (default: one for each GPU, or else for each CPU)",
    )


def _serve(options: "argparse.Namespace") -> int:
    from sagemaker_mxnet_serving import stops  # noqa: PLC0415

    with stops.held():
        from sagemaker_mxnet_serving import serving  # noqa: PLC0415

        arguments = (options.model_dir, options.host, options.port, options.workers)
        return serving.run(os.environ, *arguments)


def _local(options: "argparse.Namespace") -> int:
    from sagemaker_mxnet_training import local  # noqa: PLC0415

    try:
        return local.run(local.plan_run(options, os.environ, os.getcwd()))
    except local.UsageError as error:
        print(f"sagemaker-mxnet-training local: {error}", file=sys.stderr)
        return _USAGE


def _report(options: "argparse.Namespace") -> int:
    from sagemaker_mxnet_training.report import command  # noqa: PLC0415

    return command.run(options.run_dir, options.output)


def _export(options: "argparse.Namespace") -> int:
    from sagemaker_mxnet_training import export  # noqa: PLC0415

    try:
        done = export.export(options.model_dir, options.onnx)
    except export.ExportError as error:
        print(f"sagemaker-mxnet-training export: {error}", file=sys.stderr)
        return 1
    inputs = ", ".join(f"{name} {list(shape)}" for name, shape in done.inputs)
    batch = "any batch size" if done.any_batch else "this batch size only"
    print(f"{done.path}: inputs {inputs.replace('None', 'batch')}, {batch}")
    print(f"ONNX Runtime agrees with MXNet to {done.difference:.1e} on random inputs")
    return 0


def _doctor(options: "argparse.Namespace") -> int:
    from sagemaker_mxnet_training import doctor  # noqa: PLC0415

    status = doctor.run(os.environ, options.json)
    if options.model_dir is None:
        return status
    from sagemaker_mxnet_serving import check  # noqa: PLC0415

    return check.run(os.environ, options.model_dir)


def _execute(words: List[str]) -> NoReturn:
    """Become the command that the words name."""
    try:
        os.execvp(words[0], words)
    except (OSError, ValueError) as error:  # ValueError: an empty word
        missing = isinstance(error, (FileNotFoundError, ValueError))
        known = ", ".join(_COMMANDS)
        print(
            f"sagemaker-mxnet-training: cannot execute {words[0]!r}: "
            f"{getattr(error, 'strerror', error)}; "
            f"expected a command on PATH or one of: {known}",
            file=sys.stderr,
        )
        sys.exit(_NOT_FOUND if missing else _NOT_EXECUTABLE)


_COMMANDS = ("train", "serve", "local", "report", "export", "doctor")
