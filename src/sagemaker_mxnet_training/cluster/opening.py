"""Opens the coordinator of a host: the leader on the first one, a follower elsewhere."""

import selectors

from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.coordination import Coordinator, Orders
from sagemaker_mxnet_training.config.job import Job


def open_coordinator(
    job: Job, log: Log, orders: Orders, selector: selectors.BaseSelector
) -> Coordinator:
    """Return this host's coordinator: the leader's on the first host, a follower's elsewhere.

    Raises:
        NetworkError: the leader's port cannot be listened on.
    """
    # A host is one of the two, and has no use for the other's module.
    if job.is_leader:
        from sagemaker_mxnet_training.cluster import leader  # noqa: PLC0415

        return leader.open_leader(job, log, orders, selector)
    from sagemaker_mxnet_training.cluster import follower  # noqa: PLC0415

    return follower.open_follower(job, log, orders, selector)
