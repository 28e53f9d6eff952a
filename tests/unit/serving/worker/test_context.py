"""What a function of the user's learns of a request, and what it may answer with."""

import pytest

from sagemaker_mxnet_serving.inference import Request
from sagemaker_mxnet_serving.worker.context import Context


@pytest.fixture
def context() -> Context:
    headers = {
        "x-amzn-sagemaker-custom-attributes": "trace=1",
        "x-amzn-sagemaker-session-id": "NEW_SESSION",
        "x-amzn-sagemaker-inference-id": "i-7",
        "x-amzn-sagemaker-target-model": "a.tar.gz",
        "x-amzn-sagemaker-target-variant": "blue",
    }
    return Context(Request("r-1", b"", "text/csv", "*/*", headers), "/opt/ml/model")


def test_context_of_a_request(context: Context) -> None:
    assert (context.request_id, context.content_type, context.accept) == ("r-1", "text/csv", "*/*")
    assert (context.custom_attributes, context.session_id) == ("trace=1", "NEW_SESSION")
    assert (context.inference_id, context.target_model) == ("i-7", "a.tar.gz")
    assert context.target_variant == "blue"
    assert context.system_properties == {"model_dir": "/opt/ml/model", "gpu_id": None}


def test_names_of_the_inference_toolkits(context: Context) -> None:
    assert context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes") == "trace=1"
    assert context.get_request_header(0, "Absent") == ""
    assert context.get_all_request_header(0)["x-amzn-sagemaker-inference-id"] == "i-7"
    context.set_response_header(0, "X-Note", "kept")
    context.set_response_content_type(0, "image/png")
    assert context.response_headers == {"X-Note": "kept"}
    assert context.get_response_content_type(0) == "image/png"


def test_headers_of_the_answer(context: Context) -> None:
    context.set_custom_attributes("x" * 1024)
    context.open_session("s-1")
    context.close_session("s-0")
    assert context.response_headers == {
        "X-Amzn-SageMaker-Custom-Attributes": "x" * 1024,
        "X-Amzn-SageMaker-New-Session-Id": "s-1",
        "X-Amzn-SageMaker-Closed-Session-Id": "s-0",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Note", "two\r\nlines"),
        ("X-Note", "\u00e9"),
        ("X Note", "space"),
        ("", "x"),
        ("Content-Length", "0"),
        ("transfer-encoding", "chunked"),
        ("X-Amzn-SageMaker-Custom-Attributes", "x" * 1025),
    ],
)
def test_headers_that_a_script_cannot_set(context: Context, name: str, value: str) -> None:
    with pytest.raises(ValueError, match="expected|not valid or is reserved"):
        context.set_header(name, value)
    assert context.response_headers == {}
