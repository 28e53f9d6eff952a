"""Write small data in the formats of MNIST and of two text data sets, made of what is at hand.

    made_up_data.py DIRECTORY

DIRECTORY/train, DIRECTORY/test   labels.gz and images.gz (idx files), as AWS's examples want MNIST
DIRECTORY/npz                     mnist.npz, as Keras has it
DIRECTORY/text                    train and test: a label and some words in each line
DIRECTORY/files                   MNIST's own file names, with and without .gz, and two texts

The images are scikit-learn's handwritten digits, enlarged from 8 by 8 to 28 by 28 pixels.
"""

import gzip
import pathlib
import struct
import sys

import numpy as np
from sklearn.datasets import load_digits

TESTED = 297


def idx(array):
    """Return an array of bytes as an idx file (yann.lecun.com/exdb/mnist)."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype("uint8").tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_images(directory):
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).repeat(3, axis=1).repeat(3, axis=2)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype("uint8")
    order = np.random.RandomState(1).permutation(len(images))
    parts = {"train": order[TESTED:], "test": order[:TESTED]}
    for name, chosen in parts.items():
        pair = {"images": idx(images[chosen]), "labels": idx(labels[chosen])}
        prefix = {"train": "train", "test": "t10k"}[name]
        for kind, content in pair.items():
            write(directory / name / f"{kind}.gz", content)
            own = f"{prefix}-{kind}-idx{ {'images': 3, 'labels': 1}[kind] }-ubyte"
            write(directory / "files" / own, content)
            write(directory / "files" / f"{own}.gz", content)
    (directory / "npz").mkdir()
    arrays = {}
    for name, chosen in parts.items():
        arrays.update({f"x_{name}": images[chosen], f"y_{name}": labels[chosen]})
    np.savez(directory / "npz" / "mnist.npz", **arrays)


def write_texts(directory):
    random = np.random.RandomState(2)
    kinds = [[f"{kind}{number}" for number in range(20)] for kind in ("good", "bad")]
    for name, count in {"train": 800, "test": 200}.items():
        lines = []
        for _ in range(count):
            label = random.randint(2)
            words = random.choice(kinds[label], random.randint(5, 9))
            lines.append(" ".join([str(label), *words]))
        write(directory / "text" / name, "\n".join(lines).encode())
        sentences = "\n".join(line[2:] for line in lines)
        write(directory / "files" / f"sherlockholmes.{name}.txt", sentences.encode())


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    write_images(folder)
    write_texts(folder)
