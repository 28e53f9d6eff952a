#!/usr/bin/env bash
# Builds the training image from this checkout: the wheel first, the image from the wheel.
set -euo pipefail
# shellcheck source=scripts/engine.sh
. "$(dirname "$0")/engine.sh"
cd "$(dirname "$0")/.."

usage() {
  cat <<USAGE
usage: scripts/build-image.sh [--gpu | --horovod] [--base IMAGE] [--tag TAG] [DOCKER BUILD OPTION]...

  --gpu         MXNet's CUDA build on a CUDA runtime base
  --horovod     with Horovod, which is built here: five minutes of a CPU, and 4 MB more
  --base IMAGE  Debian or Ubuntu to build on (default: debian:bookworm-slim, or, where no registry
                answers, $LOCAL_BASE made by scripts/base-image.sh)
  --tag TAG     name of the image (default: sagemaker-mxnet-training:latest, with --gpu :gpu, with
                --horovod :horovod)

Everything else goes to docker build (--no-cache, --network host). pip's index and CA bundle as set
on this machine serve the build and stay out of the image. DOCKER_BUILDKIT=1 builds with BuildKit.
USAGE
}

DEFAULT_BASE=debian:$DEBIAN_RELEASE-slim
CUDA_BASE=nvidia/cuda:11.8.0-cudnn8-runtime-ubuntu22.04

lock=cpu
horovod=
base=
tag=
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --base=* | --tag=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --gpu) lock=gpu ;;
    --horovod) horovod=1 ;;
    --base | --tag)
      [ $# -gt 1 ] || { usage >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) options+=("$1") ;;
  esac
  shift
done
if [ $lock = gpu ] && [ -n "$horovod" ]; then
  die "--gpu and --horovod: Horovod for GPUs needs CUDA's compiler and NCCL to be built, which are not here" \
    "use an image that has Horovod already (docs/horovod.md), or --horovod alone for CPUs"
fi
if [ -z "$tag" ]; then
  tag=sagemaker-mxnet-training:latest
  if [ -n "$horovod" ]; then tag=sagemaker-mxnet-training:horovod; fi
  if [ $lock = gpu ]; then tag=sagemaker-mxnet-training:gpu; fi
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/build-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A base that was asked for is used or the build ends; the default has a substitute.
choose_base() {
  if [ -n "$base" ]; then
    have_image "$base" || docker pull "$base" >&2 ||
      die "the base image $base is not here and cannot be pulled; the engine's reason is above" \
        "correct --base, log in to its registry, or leave --base out"
  elif [ $lock = gpu ]; then
    base=$CUDA_BASE
    have_image "$base" || docker pull "$base" >&2 ||
      die "the CUDA base image $base is not here and cannot be pulled; the engine's reason is above" \
        "build where its registry answers, or name another with --base"
  elif have_image "$DEFAULT_BASE"; then
    base=$DEFAULT_BASE
  elif have_image "$LOCAL_BASE"; then
    base=$LOCAL_BASE
  elif docker pull "$DEFAULT_BASE" >"$work/pull.log" 2>&1; then
    base=$DEFAULT_BASE
  else
    say "$DEFAULT_BASE cannot be pulled ($(tail -n 1 "$work/pull.log")): making $LOCAL_BASE instead"
    scripts/base-image.sh "$LOCAL_BASE"
    base=$LOCAL_BASE
  fi
}

# The checkout may be read-only, or have another build going on: the context is a copy.
make_context() {
  mkdir -p "$work/context/docker"
  cp -r .dockerignore setup.py pyproject.toml README.md LICENSE src "$work/context"
  cp -r docker/Dockerfile docker/requirements "$work/context/docker"
  site_settings "$work/context/docker/site" /build
}

build() {
  docker build --force-rm --iidfile "$work/id" -f "$work/context/docker/Dockerfile" \
    --build-arg http_proxy --build-arg https_proxy --build-arg no_proxy \
    --build-arg BASE_IMAGE="$base" --build-arg LOCK="$lock" --build-arg HOROVOD="$horovod" \
    --label org.opencontainers.image.version="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/sagemaker_mxnet_toolkit/__init__.py)" \
    --label org.opencontainers.image.revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --label org.opencontainers.image.base.name="$base" \
    ${options[@]+"${options[@]}"} "$work/context"
}

unfinished() {
  docker images --quiet --filter dangling=true --filter label=sagemaker-mxnet-training.stage=unfinished | sort -u
}

need_engine
need_space 4000 "$(engine_root)" "the image and its first stages"
choose_base
make_context
say "building $tag on $base"
unfinished >"$work/before"
if ! build; then
  # What earlier builds left is the engine's cache; what this one left is half an image.
  unfinished | comm -13 "$work/before" - | xargs -r docker image rm >/dev/null 2>&1 || true
  die "the build failed; its last lines are above" "where space is short: docker system df; where builds have no network: --network host"
fi
id=$(cat "$work/id")
# The CUDA build needs a driver to be loaded; this one can show at once that it works.
modules=mxnet${horovod:+, horovod.mxnet}
if [ $lock = cpu ] && ! docker run --rm "$id" python -c "import $modules" >&2; then
  docker image rm "$id" >/dev/null
  die "the new image cannot import $modules; the reason is above" "see docker/requirements/$lock.txt"
fi
docker tag "$id" "$tag"
say "built $tag: $(($(docker image inspect --format '{{.Size}}' "$id") / 1000000)) MB"
