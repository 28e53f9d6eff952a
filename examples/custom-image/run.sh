#!/usr/bin/env bash
# Builds the image of this folder's Dockerfile and trains examples/digits in it, as SageMaker would.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/engine.sh
. scripts/engine.sh
[ $# = 0 ] || { say "unknown argument: $1 (it takes none; BASE_IMAGE and TAG name the images)"; exit 2; }

base=${BASE_IMAGE:-python:3.11}
tag=${TAG:-sagemaker-mxnet-custom:latest}
work=$(mktemp -d "${TMPDIR:-/tmp}/custom-image.XXXXXX")
container=custom-image-$$
trap 'docker rm -f "$container" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

need_engine
need_space 4000 "$(engine_root)" "the image"

site_settings "$work/site" /etc/site
if ! have_image "$base" && ! docker pull "$base" >"$work/log" 2>&1; then
  say "$base cannot be pulled ($(tail -n 1 "$work/log")): standing in for it"
  scripts/base-image.sh
  base=sagemaker-mxnet-python:$DEBIAN_RELEASE
  docker build --force-rm -t "$base" --build-arg BASE_IMAGE="$LOCAL_BASE" \
    -f examples/custom-image/python.Dockerfile "$work" ||
    die "the stand-in for python:3.11 cannot be built; the last lines are above"
fi

mkdir "$work/checkout" "$work/context"
cp -r setup.py pyproject.toml README.md LICENSE src "$work/checkout"
# With one time for all files, the same sources make the same wheel, so the engine can use its cached layer.
SOURCE_DATE_EPOCH=$(date --date 2020-01-01 +%s) python3 -m pip wheel --quiet --no-deps --wheel-dir "$work/context" "$work/checkout" ||
  die "the wheel cannot be built; pip's reason is above" "see that python3 has pip, and pip an index"
docker build --force-rm -t "$tag" --build-arg BASE_IMAGE="$base" \
  -f examples/custom-image/Dockerfile "$work/context" ||
  die "the image cannot be built; the last lines are above"

# What SageMaker does: configuration under /opt/ml, and the one word "train". Copied, not mounted, so
# that what the container writes as root needs no root to remove.
mkdir -p "$work/ml/input/config" "$work/ml/output"
echo '{"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}' \
  >"$work/ml/input/config/resourceconfig.json"
echo '{"sagemaker_program": "train.py", "sagemaker_submit_directory": "/code", "epochs": "5"}' \
  >"$work/ml/input/config/hyperparameters.json"
echo '{}' >"$work/ml/input/config/inputdataconfig.json"
docker create --name "$container" -v "$PWD/examples/digits:/code:ro" \
  -v "$work/site:/etc/site:ro" -e PIP_CONFIG_FILE=/etc/site/pip.conf "$tag" train >/dev/null
docker cp "$work/ml" "$container:/opt/"
docker start --attach "$container" || die "the job failed; its cause is above"
docker cp "$container:/opt/ml/model" "$work/model"
ls -l "$work/model"
say "trained in $tag"
