"""Real data for the examples: scikit-learn's handwritten digits, as files of two channels."""

import pathlib

import numpy as np
from sklearn.datasets import load_digits


def write_channels(directory: pathlib.Path) -> dict:
    """Write ``train/digits.npz`` and ``validation/digits.npz``; return channel name to folder."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 1, 8, 8)
    order = np.random.RandomState(1).permutation(len(images))
    channels = {}
    for name, chosen in {"train": order[360:], "validation": order[:360]}.items():
        channels[name] = directory / name
        channels[name].mkdir(parents=True, exist_ok=True)
        np.savez(channels[name] / "digits.npz", images=images[chosen], labels=labels[chosen])
    return channels
