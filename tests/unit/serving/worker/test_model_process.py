"""The process of a model, without a model."""

import subprocess
import sys

HIGH = """
import fcntl, resource, socket
from sagemaker_mxnet_serving.worker.model_process import ModelProcess
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
front, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
control = socket.socket(fileno=fcntl.fcntl(own, fcntl.F_DUPFD, 1500))
own.close()
front.close()
ModelProcess(control, None, None).run()
print("ended")
"""


def test_control_socket_with_a_high_descriptor() -> None:
    """The control socket keeps the front's number, and select(2) takes none beyond 1,023."""
    done = subprocess.run([sys.executable, "-c", HIGH], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("ended\n", "")
