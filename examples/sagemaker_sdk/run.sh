#!/usr/bin/env bash
# Runs fit.py (SDK 2, the MXNet estimator) in an environment of its own; arguments go to fit.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/engine.sh
. scripts/engine.sh

venv=${SDK_VENV:-.venv-sdk}
need_engine
have_image sagemaker-mxnet-training:latest || scripts/build-image.sh
if ! [ -e "$venv/ready" ]; then
  say "installing the SageMaker Python SDK into $venv (half a gigabyte)"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -r examples/sagemaker_sdk/requirements.txt ||
    die "the SDK cannot be installed; pip's reason is above" "see that pip reaches its index, and the disk's free space"
  touch "$venv/ready"
fi
exec "$venv/bin/python" examples/sagemaker_sdk/fit.py "$@"
