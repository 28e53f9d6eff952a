"""Where S3 is, for the parts of sagemaker-training that copy from and to it."""

from typing import Mapping, Optional


def endpoint(environ: Mapping[str, str]) -> Optional[str]:
    """Return the URL of an S3 other than AWS's own, or ``None``.

    ``S3_ENDPOINT_URL`` is sagemaker-training 5.1.4's variable; the others are those of the AWS SDKs
    (SDK reference, "Service-specific endpoints"), which SageMaker's Python SDK exports.
    """
    if environ.get("S3_ENDPOINT_URL"):
        return environ["S3_ENDPOINT_URL"]
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
