"""Answers that say what went wrong: to the caller in one sentence, to the log in full."""

from sagemaker_mxnet_serving.messages import InferenceError, Request, Response
from sagemaker_mxnet_serving.script import user_traceback
from sagemaker_mxnet_toolkit.log import write_all

_STDERR = 2


def refusal(error: InferenceError) -> Response:
    """Tell the caller what an ``InferenceError`` says."""
    # A script may have made the status anything.
    valid = isinstance(error.status, int) and 400 <= error.status <= 599
    return Response(error.status if valid else 500, f"{error}\n".encode("utf-8", "replace"))


def failure(request: Request, function: str, error: BaseException) -> Response:
    """Tell the caller that a function failed, and the log why.

    The exception's text stays in the log: it may hold paths, data or secrets.
    """
    kind = type(error).__name__
    head = f"request {request.id}: {function} raised {kind}"
    # One write, so that the lines of several workers do not mix.
    lines = f"[{request.id}] ".join(["", *user_traceback(error).splitlines(keepends=True)])
    write_all(_STDERR, f"{head}\n{lines}\n".encode("utf-8", "replace"))
    return Response(
        500,
        f"{function} raised {kind}; request {request.id}: "
        "the log of the container has the message under this id\n".encode("utf-8", "replace"),
    )
