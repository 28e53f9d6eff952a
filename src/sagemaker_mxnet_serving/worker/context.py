"""The context of a request: the last argument of a script's functions, if they ask for it."""

import re
from typing import Any, Dict, Mapping

from sagemaker_mxnet_serving.inference import Request

PREFIX = "X-Amzn-SageMaker-"
"""The prefix of SageMaker's headers."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_LONGEST_ATTRIBUTES = 1024  # characters, SageMaker's limit for Custom-Attributes

# The HTTP server sets these.
_RESERVED = frozenset(
    {"connection", "content-length", "date", "keep-alive", "server", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)


class Context:
    """The headers of a request and of its response.

    The methods with an ``index`` are those of AWS's inference toolkits; the index is ignored.

    Attributes:
        request_id: names the request in the log.
        content_type: the header Content-Type, unchanged.
        accept: the header Accept, unchanged.
        headers: all headers of the request, with names in lower case.
        model_dir: the directory of the model's files.
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
        """The ``CustomAttributes`` of the request."""
        return self._sagemaker("Custom-Attributes")

    @property
    def session_id(self) -> str:
        """The id of the request's session, or ``NEW_SESSION``."""
        return self._sagemaker("Session-Id")

    @property
    def inference_id(self) -> str:
        """The ``InferenceId`` of the request."""
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
        """Set the ``CustomAttributes`` of the response: at most 1,024 ASCII characters."""
        self.set_header(PREFIX + "Custom-Attributes", text)

    def open_session(self, session_id: str) -> None:
        """Send the client the id of a session that starts with this request."""
        self.set_header(PREFIX + "New-Session-Id", session_id)

    def close_session(self, session_id: str) -> None:
        """Send the client the id of a session that ends with this request."""
        self.set_header(PREFIX + "Closed-Session-Id", session_id)

    def set_header(self, name: str, value: str) -> None:
        """Set a header of the response. SageMaker forwards only its own headers to the client.

        Raises:
            ValueError: the header is not valid, or reserved for the HTTP server.
        """
        value = str(value)
        if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
            raise ValueError(f"header {name!r}: the name is not valid or is reserved")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"header {name}: expected one line of printable ASCII characters")
        if name.lower().endswith("custom-attributes") and len(value) > _LONGEST_ATTRIBUTES:
            raise ValueError(f"header {name}: {len(value)} characters; expected at most 1,024")
        if name.lower() == "content-type":
            self.response_content_type = value
        else:
            self.response_headers[name] = value

    def get_request_header(self, index: int, name: str) -> str:
        """Return a header of the request; an empty string if it is missing."""
        return self.headers.get(name.lower(), "")

    def get_all_request_header(self, index: int) -> Mapping[str, str]:
        """Return all headers of the request, with names in lower case."""
        return self.headers

    def set_response_header(self, index: int, name: str, value: str) -> None:
        """Set a header of the response."""
        self.set_header(name, value)

    def set_response_content_type(self, index: int, value: str) -> None:
        """Set the content type of the response, unless the function returns one."""
        self.set_header("Content-Type", value)

    def get_response_content_type(self, index: int) -> str:
        """Return the content type that was set."""
        return self.response_content_type

    def _sagemaker(self, name: str) -> str:
        return self.headers.get((PREFIX + name).lower(), "")
