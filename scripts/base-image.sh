#!/usr/bin/env bash
# Makes a small Debian base image from Debian's own packages, for machines that reach a Debian
# mirror but no container registry. It does for this project what debian:bookworm-slim does elsewhere.
set -euo pipefail
# shellcheck source=scripts/engine.sh
. "$(dirname "$0")/engine.sh"

usage() {
  cat <<USAGE
usage: scripts/base-image.sh [--force] [TAG]

Makes the image TAG (default: $LOCAL_BASE) with debootstrap; does nothing when it is there already.

  --force          make it again

  DEBIAN_RELEASE   release to take (default: bookworm)
  DEBIAN_MIRROR    mirror to take it from (default: debootstrap's own)
USAGE
}

force=no
tag=
while [ $# -gt 0 ]; do
  case $1 in
    --force) force=yes ;;
    -h | --help) usage; exit 0 ;;
    *)
      if [[ $1 = -* ]] || [ -n "$tag" ]; then
        usage >&2
        say "unknown argument: $1"
        exit 2
      fi
      tag=$1
      ;;
  esac
  shift
done
tag=${tag:-$LOCAL_BASE}

need_engine
if [ $force = no ] && have_image "$tag"; then
  say "$tag is there already (--force makes it again)"
  exit 0
fi
[ "$(id -u)" = 0 ] ||
  die "debootstrap unpacks a system as root, and this is user $(id -un)" "run: sudo scripts/base-image.sh"

work=$(mktemp -d "${TMPDIR:-/tmp}/base-image.XXXXXX")
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
need_space 1500 "$work" "a Debian system under construction"
need_space 500 "$(engine_root)" "the base image"

find_debootstrap() {
  command -v debootstrap && return
  command -v apt-get >/dev/null ||
    die "there is no debootstrap here" "install it with this system's package manager, or pull a base: docker pull debian:$DEBIAN_RELEASE-slim"
  say "no debootstrap here: unpacking Debian's for this once"
  (
    cd "$work"
    apt-get download debootstrap || { apt-get update && apt-get download debootstrap; }
    dpkg-deb -x debootstrap_*.deb tool
  ) >"$work/download.log" 2>&1 ||
    die "debootstrap cannot be downloaded: $(tail -n 1 "$work/download.log")" "see that apt-get reaches a mirror, or install debootstrap by hand"
  export DEBOOTSTRAP_DIR=$work/tool/usr/share/debootstrap
  echo "$work/tool/usr/sbin/debootstrap"
}

in_root() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$root" "$@"; }

bootstrap() {
  debootstrap=$(find_debootstrap)
  if [ -d "$work/tool" ]; then export DEBOOTSTRAP_DIR=$work/tool/usr/share/debootstrap; fi
  # minbase: what dpkg and apt need. Two file systems on one mirror: its security updates lie beside it.
  "$debootstrap" --variant=minbase "$DEBIAN_RELEASE" "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
  local mirror
  mirror=$(awk '$1 == "deb" {print $2; exit}' "$root/etc/apt/sources.list")
  mirror=${mirror%/}
  cat >"$root/etc/apt/sources.list" <<LIST
deb $mirror $DEBIAN_RELEASE main
deb $mirror $DEBIAN_RELEASE-updates main
deb $mirror-security $DEBIAN_RELEASE-security main
LIST
  cat >"$root/etc/dpkg/dpkg.cfg.d/no-documentation" <<'CFG'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
CFG
  in_root apt-get update
  in_root apt-get -y upgrade
}

# What only this machine, or only the making of it, needs.
slim() {
  in_root apt-get clean
  find "$root/usr/share/doc" -type f ! -name copyright -delete
  find "$root/usr/share/doc" -depth -type d -empty -delete
  rm -rf "$root"/usr/share/{man,info,locale}/* "$root"/var/lib/apt/lists/* \
    "$root"/var/cache/{apt,debconf,ldconfig}/* "$root"/var/log/* "$root"/tmp/* \
    "$root"/etc/{resolv.conf,hostname} "$root"/etc/apt/apt.conf.d/*proxy*
}

say "making $tag from Debian $DEBIAN_RELEASE (a few minutes)"
if ! bootstrap >"$work/log" 2>&1; then
  tail -n 15 "$work/log" >&2
  die "debootstrap failed; its last lines are above" "see that a Debian mirror answers (DEBIAN_MIRROR chooses another) and that $work had room"
fi
slim
tar -C "$root" --numeric-owner --one-file-system -c . |
  docker import --change 'CMD ["bash"]' --message "debootstrap $DEBIAN_RELEASE" - "$tag" >/dev/null ||
  die "the engine did not take the base image" "its own message is above"
say "made $tag: $(($(docker image inspect --format '{{.Size}}' "$tag") / 1000000)) MB"
