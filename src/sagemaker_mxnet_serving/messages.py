"""What the HTTP front and the workers exchange, and the error a user's script may raise."""

from dataclasses import dataclass, field
from typing import Mapping, Union

Piece = Union[bytes, bytearray]
"""A piece of a body, as it came."""


@dataclass(frozen=True)
class Request:
    """One call of ``POST /invocations``, as a worker gets it.

    Attributes:
        id: names the request in the log, in an error and in a header of the answer.
        body: the body, complete.
        content_type: the header Content-Type; empty where there is none.
        accept: the header Accept; empty where there is none.
        headers: all headers, their names in lower case.
    """

    id: str
    body: bytes = field(repr=False)
    content_type: str = ""
    accept: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """The answer to a ``Request``.

    Attributes:
        status: the HTTP status.
        body: the body.
        content_type: the header Content-Type.
        headers: more headers, such as ``X-Amzn-SageMaker-Custom-Attributes``.
    """

    status: int
    body: bytes = field(repr=False)
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


class InferenceError(Exception):
    """An error that the caller is meant to read. A user's script may raise it too.

    Args:
        message: what the caller reads.
        status: the HTTP status, from 400 to 599.
    """

    status = 400  # of a subclass that does not call this one's __init__

    def __init__(self, message: str, status: int = 400) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"status {status}: expected a number from 400 to 599")
        super().__init__(message)
        self.status = status
