#!/usr/bin/env bash
# Trains examples/digits on several hosts, each a container on this machine, and cleans up.
set -euo pipefail
# shellcheck source=scripts/engine.sh
. "$(dirname "$0")/engine.sh"
cd "$(dirname "$0")/.."

usage() {
  cat <<USAGE
usage: scripts/compose.sh [--hosts N] [--run-dir DIR] [--name NAME] [-- COMPOSE UP OPTION...]

  --hosts N      2 (the default), 3 or 4
  --run-dir DIR  new or empty folder; host H's /opt/ml is DIR/H (default: runs/compose-DATE-TIME)
  --name NAME    name of the Compose project, for two runs at once (default: sagemaker-mxnet)

The files belong to the user who starts this. SM_HPS holds hyperparameters, a JSON object; IMAGE
names the image (default: sagemaker-mxnet-training:latest, built when it is missing). Exit status:
the job's on algo-1, and 1 when a host wrote no output/success.
USAGE
}

hosts=2
name=sagemaker-mxnet
run_dir=runs/compose-$(date +%Y%m%d-%H%M%S)
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --hosts=* | --run-dir=* | --name=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --hosts | --run-dir | --name)
      [ $# -gt 1 ] || { usage >&2; exit 2; }
      variable=${1#--}
      printf -v "${variable/-/_}" %s "$2"
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    --)
      options=("${@:2}")
      break
      ;;
    *)
      usage >&2
      say "unknown argument: $1 (options of compose up go behind --)"
      exit 2
      ;;
  esac
  shift
done
if ! [ -f "docker/hosts/$hosts.env" ]; then
  say "--hosts $hosts: expected $(cd docker/hosts && printf '%s ' *.env | sed 's/\.env//g')(docker/docker-compose.yml says how to add more)"
  exit 2
fi

need_engine
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  die "there is neither 'docker compose' nor 'docker-compose' on this machine" \
    "install one of them (Debian 12: apt-get install docker-compose; Ubuntu: docker-compose-v2)"
fi
compose+=(-f docker/docker-compose.yml -p "$name")

if [ -n "$(docker ps -aq --filter label=com.docker.compose.project="$name")" ]; then
  die "the name $name is in use: there are containers of a Compose project of that name" \
    "choose another with --name, or remove them: ${compose[*]} down"
fi
if [ -e "$run_dir" ] && [ -n "$(ls -A "$run_dir" 2>&1)" ]; then
  die "$run_dir is not an empty folder" "choose another with --run-dir; nothing there is overwritten"
fi
export IMAGE=${IMAGE:-sagemaker-mxnet-training:latest}
have_image "$IMAGE" || {
  say "there is no image $IMAGE: building it"
  scripts/build-image.sh --tag "$IMAGE"
}
for number in $(seq "$hosts"); do
  mkdir -p "$run_dir/algo-$number" || die "$run_dir cannot be made" "choose a folder that you can write with --run-dir"
done

RUN_DIR=$(cd "$run_dir" && pwd)
export RUN_DIR
RUN_USER=$(id -u):$(id -g)
export RUN_USER
export COMPOSE_PROFILES=$hosts
# pip's configuration files stay outside; what they say about the CA bundle goes along.
PIP_CERT=${PIP_CERT:-$(python3 -m pip config get global.cert 2>/dev/null || true)}
if [ -n "$PIP_CERT" ]; then export PIP_CERT; else unset PIP_CERT; fi

# The containers are stopped and gone whatever ends this script. Ctrl-C reaches Compose by itself;
# Compose 1 takes a stop for a success.
trap '"${compose[@]}" down --volumes >/dev/null 2>&1' EXIT
stopped=
trap 'stopped=130' INT
"${compose[@]}" up --no-build --abort-on-container-exit --exit-code-from algo-1 ${options[@]+"${options[@]}"} &
up=$!
trap 'stopped=143; kill -TERM $up' TERM
while true; do
  status=0
  wait $up || status=$?
  kill -0 $up 2>/dev/null || break
done
missing=()
for number in $(seq "$hosts"); do
  [ -e "$run_dir/algo-$number/output/success" ] || missing+=("algo-$number")
done
if [ -n "$stopped" ]; then
  say "stopped; what the job wrote is in $run_dir"
  exit "$stopped"
elif [ $status = 0 ] && [ ${#missing[@]} -gt 0 ]; then
  status=1
  say "the job did not succeed: there is no output/success of ${missing[*]} in $run_dir; Compose's lines above say more"
elif [ $status = 0 ]; then
  say "trained on $hosts hosts; the model is in $run_dir/algo-1/model"
else
  say "the job failed (exit status $status); the cause is in $run_dir/algo-1/output/failure"
fi
exit $status
