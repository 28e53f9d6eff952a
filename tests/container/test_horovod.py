"""Horovod through the SageMaker SDK's local mode, on the image that has it."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from tests.container.test_sagemaker_sdk import fit, sdk
from tests.support.containers import run

__all__ = ["sdk"]

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("local_mode")]

SCRIPT = """
import json
import os

import horovod.mxnet as hvd
import mxnet as mx
import numpy as np

hvd.init()
images = np.load(os.path.join(os.environ["SM_CHANNEL_TRAIN"], "digits.npz"))["images"]
total = hvd.allreduce(mx.nd.array([hvd.rank(), images.size]), average=False).asnumpy()
place = {"rank": hvd.rank(), "local-rank": hvd.local_rank(), "size": hvd.size()}
name = f"local-rank-{hvd.local_rank()}-rank-{hvd.rank()}.json"
with open(os.path.join(os.environ["SM_MODEL_DIR"], name), "w") as file:
    json.dump({**place, "sum": float(total[0]), "images": float(total[1] / images.size)}, file)
os.write(1, f"RANK {hvd.rank()}\\n".encode())  # print makes several writes, which ranks would mix
"""


def test_doctor_knows_horovod(horovod_image: str) -> None:
    done = run("docker", "run", "--rm", horovod_image, "sagemaker-mxnet-training", "doctor")
    assert re.search(r"^Horovod +0.28.1, built with Gloo$", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize(("hosts", "processes"), [(1, 2), (2, 1), (2, 2), (5, 2)])
def test_ranks_through_the_sdk(
    horovod_image: str, sdk: str, tmp_path: Path, hosts: int, processes: int
) -> None:
    """Each rank writes its place into the model; the training data are arrays of NumPy."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text(SCRIPT)
    output = tmp_path / "out"
    done = fit(
        sdk,
        *("--image", horovod_image, "--source-dir", str(source), "--output", str(output)),
        *("--hosts", str(hosts), "--processes-per-host", str(processes)),
    )
    size = hosts * processes
    # Lines are as the script wrote them, after the prefix of the SDK and its colours.
    printed = re.findall(r"\|\S* RANK (\d+)\s*$", done.stdout, re.MULTILINE)
    assert sorted(map(int, printed)) == list(range(size)), done.stdout
    with tarfile.open(output / "model.tar.gz") as archive:
        names = [name for name in archive.getnames() if name.endswith(".json")]
        found = [json.load(archive.extractfile(name)) for name in names]  # type: ignore[arg-type]
    expected = [
        {
            "rank": rank,
            "local-rank": rank % processes,
            "size": size,
            "sum": sum(range(size)),
            "images": size,
        }
        for rank in range(size)
    ]
    assert sorted(found, key=lambda place: place["rank"]) == expected
