# Sourced by the scripts that talk to a container engine: one wording for what can be missing.
# shellcheck shell=bash

DEBIAN_RELEASE=${DEBIAN_RELEASE:-bookworm}
LOCAL_BASE=sagemaker-mxnet-base:$DEBIAN_RELEASE

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die CAUSE [REMEDY]: what is missing, then what to do about it.
die() {
  say "$1"
  if [ $# -gt 1 ]; then say "  $2"; fi
  exit 1
}

need_engine() {
  command -v docker >/dev/null ||
    die "there is no 'docker' command on this machine" \
      "install Docker Engine 20.10 or later (Debian, Ubuntu: apt-get install docker.io)"
  local answer
  answer=$(docker version --format '{{.Server.Version}}' 2>&1) ||
    die "the container engine cannot be reached: $(tail -n 1 <<<"$answer")" \
      "start it (systemctl start docker), join the group 'docker', or correct DOCKER_HOST (now '${DOCKER_HOST:-not set}')"
}

# need_space MEGABYTES DIRECTORY WHAT: a directory of another machine (a remote engine's) is not checked.
need_space() {
  local free
  [ -d "$2" ] || return 0
  free=$(df -Pm "$2" | awk 'NR == 2 {print $4}')
  [ "$free" -ge "$1" ] ||
    die "$3 needs $1 MB, and $2 has $free MB free" \
      "free some (docker system df; docker builder prune; docker image prune), or move the engine's data"
}

engine_root() { docker info --format '{{.DockerRootDir}}' 2>/dev/null; }

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# site_settings DIRECTORY NAME: writes what pip on this machine is told about its package index into
# DIRECTORY, as a pip.conf and a ca.pem, for a container where DIRECTORY is called NAME.
site_settings() {
  local settings bundle
  mkdir -p "$1"
  # The first of a name wins: pip lists its variables before its files.
  settings=$(python3 -m pip config list 2>/dev/null |
    sed -n "s/^[^.]*\.\([a-z-]*\)='\(.*\)'\$/\1 = \2/p" |
    awk '!seen[$1]++ {gsub(/\\n/, " "); print}') || true
  bundle=$(sed -n 's/^cert = //p' <<<"$settings")
  bundle=${bundle:-${SSL_CERT_FILE:-${REQUESTS_CA_BUNDLE:-}}}
  {
    echo '[global]'
    grep -E '^(index-url|extra-index-url|trusted-host|proxy|timeout|retries) ' <<<"$settings" || true
    if [ -n "$bundle" ]; then echo "cert = $2/ca.pem"; fi
  } >"$1/pip.conf"
  [ -z "$bundle" ] || cat "$bundle" >"$1/ca.pem" ||
    die "the CA bundle $bundle cannot be read" "correct PIP_CERT or SSL_CERT_FILE"
}
