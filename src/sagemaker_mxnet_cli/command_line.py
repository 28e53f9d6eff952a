"""The command line: ``sagemaker-mxnet-training COMMAND``.

Commands are imported when they are used, since ``serve`` needs packages that training does not, and
imports delay ``train`` on every host.
"""

import argparse
import difflib
import glob
import os
import re
import signal
import sys
from typing import List, NoReturn, Optional

from sagemaker_mxnet_toolkit import __version__

_USAGE = 2
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127
_SHOWN = 3

_TRAIN_TEXT = """\
Run one host of a training job: fetch the code, install its requirements, start MXNet's parameter
server if it is enabled, and run the script. The job is configured by SM_* variables, by the files
in /opt/ml/input/config, or by both. SAGEMAKER_BASE_DIR replaces /opt/ml.

example:
  SAGEMAKER_BASE_DIR=/tmp/ml SM_MODULE_DIR=. SM_USER_ENTRY_POINT=train.py SM_HPS='{"epochs": 5}' \\
    sagemaker-mxnet-training train

`sagemaker-mxnet-training local train.py` is a simpler way to run a script on this machine.
"""

_LOCAL_REMARK = " (to run a script on this machine: sagemaker-mxnet-training local SCRIPT)"

_LOCAL_TEXT = """\
Run a training job on this machine. Each host is a process with its own directory in --run-dir,
laid out like /opt/ml. Arguments after SCRIPT are hyperparameters, which are passed to the script as
--NAME VALUE. Put those with the name of an option below after `--`.

examples:
  sagemaker-mxnet-training local train.py --epochs 5
  sagemaker-mxnet-training local --hosts 2 --channel training=./data train.py --epochs 5
  sagemaker-mxnet-training local --hosts 2 --processes-per-host 2 train.py    # with Horovod
  sagemaker-mxnet-training local --env SM_LOG_LEVEL=DEBUG train.py    # log every detail
"""

_SERVE_TEXT = """\
Serve a model that training_utils.save wrote, or the functions of a script.

example:
  sagemaker-mxnet-training serve runs/RUN/algo-1/model
  curl -H 'Content-Type: application/json' -d '[[0.1, 0.2]]' localhost:8080/invocations
"""

_EPILOG = """\
Any other first word is executed as a command, as in official images:
  docker run IMAGE python -V
"""


def main(arguments: Optional[List[str]] = None) -> NoReturn:
    """Run the program; exit with its status (2 for wrong usage).

    Args:
        arguments: the words after the program's name; ``sys.argv`` by default.
    """
    words = sys.argv[1:] if arguments is None else arguments
    _open_standard_streams()
    try:
        sys.exit(_run(words))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _run(words: List[str]) -> int:
    """Run a command; return its exit status."""
    if words == ["train"]:
        _train()  # skip argparse, which delays every host
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        _execute(words)
    options = _options(words)
    if "run" not in options:
        _parser().print_help(sys.stderr)
        return _USAGE
    try:
        status = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout, such as `head`, has exited. Python would flush stdout again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except FileNotFoundError as error:
        if error.filename is not None:  # getcwd(2) has no file name
            raise
        print(
            "sagemaker-mxnet-training: the current directory has been removed; "
            "change to an existing directory (cd)",
            file=sys.stderr,
        )
        status = _USAGE
    return int(status)


def _open_standard_streams() -> None:
    """Open closed standard streams (``>&-``) on /dev/null, so that no file gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


class _Parser(argparse.ArgumentParser):
    """Reports an invalid argument in one line, without a list of all arguments."""

    def error(self, message: str) -> NoReturn:
        """Print the error and a reference to ``--help``; exit with status 2."""
        self.exit(_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")

    def reject(self, argument: str, remark: str = "") -> NoReturn:
        """Print an error that suggests the closest option; exit with status 2."""
        options = re.findall(r"--[a-z-]+", self.format_help())
        closest = difflib.get_close_matches(argument.split("=", maxsplit=1)[0], options, n=1)
        suggestion = f" (did you mean {closest[0]}?)" if closest else ""
        self.error(f"unrecognized argument {argument}{remark}{suggestion}")


def _options(words: List[str]) -> argparse.Namespace:
    """Parse the command line. Unknown arguments after the script of ``local`` are the script's."""
    is_local = words[:1] == ["local"]
    end = words.index("--") if is_local and "--" in words else len(words)
    options, unknown = _parser().parse_known_args(words[:end])
    if not is_local:
        if unknown:
            script = words[0] == "train" and not unknown[0].startswith("-")
            options.parser.reject(unknown[0], _LOCAL_REMARK if script else "")
        return options
    if unknown and words.index(unknown[0]) < words.index(options.script):
        options.parser.reject(unknown[0], " (arguments of the script go after it)")
    options.arguments = [*unknown, *words[end + 1 :]]
    return options


def _parser() -> _Parser:
    parser = _Parser(
        prog="sagemaker-mxnet-training",
        description="Trains and serves Apache MXNet models, on Amazon SageMaker and elsewhere.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands")
    train = commands.add_parser(
        "train",
        help="run a job that is configured by SM_* variables and /opt/ml (SageMaker calls this)",
        description=_TRAIN_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=lambda options: _train())
    serve = commands.add_parser(
        "serve",
        help="serve a saved model (SageMaker calls this)",
        description=_SERVE_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_serve(serve)
    local = commands.add_parser(
        "local",
        help="run a job on this machine, each host as a process, without Docker",
        usage="%(prog)s [OPTION]... SCRIPT [--NAME VALUE]...",
        description=_LOCAL_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # unknown arguments are the script's
    )
    _add_local(local)
    report = commands.add_parser(
        "report", help="report on a local run: a summary, and an HTML page"
    )
    report.add_argument("run_dir", metavar="RUN_DIR", help="the run directory")
    report.add_argument(
        "--output", metavar="FILE", help="the page (default: report.html in RUN_DIR)"
    )
    report.set_defaults(run=_report)
    export = commands.add_parser(
        "export", help="export a saved model to ONNX, and compare it with MXNet"
    )
    export.add_argument("model_dir", metavar="MODEL_DIR", help="the directory of the model")
    export.add_argument("--onnx", metavar="FILE", required=True, help="the file to write")
    export.set_defaults(run=_export)
    doctor = commands.add_parser("doctor", help="check whether a job can run in this environment")
    _add_doctor(doctor)
    for command in (train, serve, local, report, export, doctor):
        command.set_defaults(parser=command)
    return parser


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    form = doctor.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="also check whether the model in DIR can be served (its script is executed); the exit "
        "status is then that of the model",
    )
    form.add_argument("--model-dir", metavar="DIR", help="the same as DIR")
    doctor.set_defaults(run=_doctor)


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_local)
    parser.add_argument("script", metavar="SCRIPT", help="the entry point: train.py, train.sh, ...")
    parser.add_argument("--hosts", metavar="N", default="1", help="1 to 64 hosts (default: 1)")
    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "--parameter-server",
        action="store_true",
        default=None,
        help="start MXNet's kvstore (default with several hosts and without Horovod)",
    )
    server.add_argument(
        "--no-parameter-server",
        dest="parameter_server",
        action="store_false",
        help="do not start it",
    )
    parser.add_argument(
        "--processes-per-host",
        metavar="N",
        help="train with Horovod: 1 to 64 workers on each host, without MXNet's kvstore",
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
        help="an argument of the script, --NAME VALUE; VALUE is JSON or a string; may be repeated",
    )
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an environment variable for all hosts; may be repeated",
    )
    parser.add_argument(
        "--source-dir",
        metavar="DIR",
        help="the directory of the code (default: that of SCRIPT)",
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="the directory of the hosts' files (default: runs/<script>-<time>)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume from the newest checkpoint of the earlier run in --run-dir",
    )


def _train() -> NoReturn:
    from sagemaker_mxnet_toolkit.processes import own_process

    with own_process.blocked_stop_signals():
        from sagemaker_mxnet_training import training

        status = training.train(os.environ, own_process.own_start())
    sys.stdout.flush()
    # Skip the shutdown of the interpreter, which takes longer than the end of a job.
    os._exit(status)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_serve)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("directory", metavar="DIR", nargs="?", help="the same as --model-dir DIR")
    model.add_argument(
        "--model-dir",
        metavar="DIR",
        help="serve the model in DIR on the loopback interface (default: /opt/ml/model, on all "
        "interfaces)",
    )
    parser.add_argument("--host", metavar="ADDRESS", help="listen on this address")
    parser.add_argument("--port", metavar="N", type=int, help="listen on this port (default: 8080)")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="number of worker processes (default: one for each GPU, or else for each CPU)",
    )


def _is_model_directory(options: argparse.Namespace, directory: str) -> bool:
    """Return whether a directory may be a model directory; if not, print an error."""
    hosts = [directory, *glob.glob(f"{glob.escape(directory)}/algo-1")]
    hosts += sorted(glob.glob(f"{glob.escape(directory)}/*/algo-1"))
    models = [
        os.path.join(host, "model")
        for host in hosts
        if all(os.path.isdir(os.path.join(host, name)) for name in ("model", "output"))
    ]
    if not os.path.exists(directory):
        fault = f"there is no such directory in {os.getcwd()}"
    elif not os.path.isdir(directory):
        fault = "not a directory; expected a model directory"
    elif not models:
        return True
    elif len(models) == 1:
        fault = f"a run directory, not a model directory; its model is in {models[0]}"
    else:
        shown = ", ".join(models[-_SHOWN:])
        fault = f"a directory of runs; expected a model directory, such as {shown}"
    print(f"{options.parser.prog}: {directory}: {fault}", file=sys.stderr)
    return False


def _serve(options: argparse.Namespace) -> int:
    options.model_dir = options.model_dir or options.directory
    if options.model_dir and not _is_model_directory(options, options.model_dir):
        return _USAGE
    from sagemaker_mxnet_toolkit.processes import own_process

    with own_process.blocked_stop_signals():
        from sagemaker_mxnet_serving import serve

        arguments = (options.model_dir, options.host, options.port, options.workers)
        return serve.run(os.environ, *arguments)


def _local(options: argparse.Namespace) -> int:
    from sagemaker_mxnet_training import local

    try:
        return local.run(local.plan_run(options, os.environ, os.getcwd()))
    except local.UsageError as error:
        print(f"sagemaker-mxnet-training local: {error}", file=sys.stderr)
        return _USAGE


def _report(options: argparse.Namespace) -> int:
    from sagemaker_mxnet_training import report

    return report.run(options.run_dir, options.output)


def _export(options: argparse.Namespace) -> int:
    from sagemaker_mxnet_training import export

    if not _is_model_directory(options, options.model_dir):
        return _USAGE
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


def _doctor(options: argparse.Namespace) -> int:
    from sagemaker_mxnet_training import doctor

    options.model_dir = options.model_dir or options.directory
    if options.model_dir and not _is_model_directory(options, options.model_dir):
        return _USAGE
    status = doctor.run(os.environ, options.json)
    if options.model_dir is None:
        return status
    from sagemaker_mxnet_serving import serve

    return serve.check(os.environ, options.model_dir)


def _execute(words: List[str]) -> NoReturn:
    """Execute another command in this process."""
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
