"""For scripts with ``from sagemaker_mxnet_container.training_utils import save``."""

from sagemaker_mxnet_training.training_utils import save, scheduler_host

__all__ = ["save", "scheduler_host"]
