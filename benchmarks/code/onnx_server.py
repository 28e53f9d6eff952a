"""ONNX Runtime in uvicorn: ``onnx_server.py MODEL.onnx PORT WORKERS``.

What one would serve instead: one session for each worker process, and nothing else that a server
needs.
"""

import functools
import io
import os
import sys

import numpy as np
import onnxruntime
import orjson
import uvicorn


@functools.lru_cache(maxsize=1)
def model() -> onnxruntime.InferenceSession:
    """Return this process' session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL"], options)


async def application(scope, receive, send):
    """Answer any request with the prediction of its body, a JSON list or an NPY file."""
    if scope["type"] != "http":
        return
    session = model()
    body = b""
    more = scope["method"] == "POST"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = b""
    if body:
        if body[:6] == b"\x93NUMPY":
            row = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
        else:
            row = np.array(orjson.loads(body), "float32")
        (output,) = session.run(None, {session.get_inputs()[0].name: row})
        answer = orjson.dumps(output, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    os.environ["MODEL"] = sys.argv[1]
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    uvicorn.run(
        "onnx_server:application",
        port=int(sys.argv[2]),
        workers=int(sys.argv[3]),
        access_log=False,
        log_level="warning",
    )
