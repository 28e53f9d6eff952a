"""Requests and responses of a model, and the error that an inference script may raise."""

from dataclasses import dataclass, field
from typing import Mapping


@dataclass(frozen=True)
class Request:
    """A request to ``/invocations``, as a worker gets it.

    Attributes:
        id: names the request in the log, in an error and in a header of the response.
        body: the body; in a worker a bytearray, which the script may write to.
        content_type: the header Content-Type; empty without one.
        accept: the header Accept; empty without one.
        headers: all headers, with names in lower case.
    """

    id: str
    body: bytes = field(repr=False)
    content_type: str = ""
    accept: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """The response to a ``Request``.

    Attributes:
        status: the HTTP status.
        body: the body.
        content_type: the header Content-Type.
        headers: further headers, such as ``X-Amzn-SageMaker-Custom-Attributes``.
    """

    status: int
    body: bytes = field(repr=False)
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


class InferenceError(Exception):
    """An error that the client sees. An inference script may raise it.

    Args:
        message: the body of the response.
        status: the HTTP status, from 400 to 599.
    """

    status = 400  # of a subclass that does not call this one's __init__

    def __init__(self, message: str, status: int = 400) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"status {status}: expected an integer from 400 to 599")
        super().__init__(message)
        self.status = status
