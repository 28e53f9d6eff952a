"""What a function of the user's gets as its last argument, if it asks for one."""

import re
from typing import Any, Dict, Mapping

from sagemaker_mxnet_serving.messages import Request

PREFIX = "X-Amzn-SageMaker-"
"""What the names of SageMaker's own headers begin with."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_LONGEST_ATTRIBUTES = 1024  # characters, SageMaker's limit for Custom-Attributes

# What the front decides: how long the body is and how the connection goes on.
_RESERVED = frozenset(
    {"connection", "content-length", "date", "keep-alive", "server", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)


class Context:
    """A request's headers, and those of its answer.

    The methods with an ``index`` are those of the context of AWS's inference toolkits; they have
    one request for each call, so the index says nothing.

    Attributes:
        request_id: names the request in the log.
        content_type: the header Content-Type, as it was sent.
        accept: the header Accept, as it was sent.
        headers: all headers of the request, their names in lower case.
        model_dir: where the model's files are.
        system_properties: ``model_dir`` and ``gpu_id``, which is None on a CPU.
    """

    def __init__(self, request: Request, model_dir: str, use_gpu: bool = False) -> None:
        self.request_id = request.id
        self.content_type = request.content_type
        self.accept = request.accept
        self.headers: Mapping[str, str] = dict(request.headers)
        self.model_dir = model_dir
        self.system_properties: Mapping[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": 0 if use_gpu else None,
        }
        self.response_headers: Dict[str, str] = {}
        self.response_content_type = ""

    @property
    def custom_attributes(self) -> str:
        """What the caller passed as ``CustomAttributes``."""
        return self._sagemaker("Custom-Attributes")

    @property
    def session_id(self) -> str:
        """The session that the request belongs to, or ``NEW_SESSION``."""
        return self._sagemaker("Session-Id")

    @property
    def inference_id(self) -> str:
        """What the caller passed as ``InferenceId``."""
        return self._sagemaker("Inference-Id")

    @property
    def target_model(self) -> str:
        """The model that a request to a multi-model endpoint names."""
        return self._sagemaker("Target-Model")

    @property
    def target_variant(self) -> str:
        """The production variant that the request names."""
        return self._sagemaker("Target-Variant")

    def set_custom_attributes(self, text: str) -> None:
        """Answer with ``CustomAttributes``: at most 1,024 ASCII characters."""
        self.set_header(PREFIX + "Custom-Attributes", text)

    def open_session(self, session_id: str) -> None:
        """Tell the caller the id of a session that begins with this request."""
        self.set_header(PREFIX + "New-Session-Id", session_id)

    def close_session(self, session_id: str) -> None:
        """Tell the caller that a session ends with this request."""
        self.set_header(PREFIX + "Closed-Session-Id", session_id)

    def set_header(self, name: str, value: str) -> None:
        """Set a header of the answer. SageMaker passes its own on to the caller, and no others.

        Raises:
            ValueError: when it is no header, or one that is not the script's to set.
        """
        value = str(value)
        if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
            raise ValueError(f"{name!r} is not a header that a script can set")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"{name}: expected printable ASCII characters in one line")
        if name.lower().endswith("custom-attributes") and len(value) > _LONGEST_ATTRIBUTES:
            raise ValueError(f"{name}: {len(value)} characters, expected at most 1,024")
        if name.lower() == "content-type":
            self.response_content_type = value
        else:
            self.response_headers[name] = value

    def get_request_header(self, index: int, name: str) -> str:
        """Return a header of the request; empty where there is none."""
        return self.headers.get(name.lower(), "")

    def get_all_request_header(self, index: int) -> Mapping[str, str]:
        """Return all headers of the request, their names in lower case."""
        return self.headers

    def set_response_header(self, index: int, name: str, value: str) -> None:
        """Set a header of the answer."""
        self.set_header(name, value)

    def set_response_content_type(self, index: int, value: str) -> None:
        """Set the content type of the answer, unless the function returns one."""
        self.set_header("Content-Type", value)

    def get_response_content_type(self, index: int) -> str:
        """Return the content type that was set."""
        return self.response_content_type

    def _sagemaker(self, name: str) -> str:
        return self.headers.get((PREFIX + name).lower(), "")
