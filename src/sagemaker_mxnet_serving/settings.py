"""Which model a worker serves, and how: plain data that the configuration makes."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class ModelSettings:
    """One model.

    Attributes:
        model_dir: holds the model's files, and ``code/``.
        program: the script's file name below ``code_dir``; empty: ``inference.py`` if it is there.
        accept: content type of an answer whose request leaves the choice.
        first_dimension: rows of every batch; default: any number where the network can, else as
            saved.
        use_gpu: whether the model predicts on the first GPU.
        max_batch: requests that are predicted together at most; 0 or 1: one by one.
        code_dir: where the script is; empty: ``code`` below ``model_dir``.
    """

    model_dir: str
    program: str = ""
    accept: str = "application/json"
    first_dimension: Optional[int] = None
    use_gpu: bool = False
    max_batch: int = 1
    code_dir: str = ""
