#!/bin/sh
# Sets up what a make target needs, and says the one command to type where it may not.
#
#   setup.sh run     the virtual environment, and bubblewrap if neither it nor a Docker engine is there
#   setup.sh dev     the same with the development tools
#   setup.sh bench   dev, and an environment of its own for what the benchmark stands beside and draws with
#   setup.sh grade VMMS   dev, and what the examples are graded with on that back-end; nothing of that with TANGO_CONFIG
#   setup.sh ci      besides dev, every server that the tests know: Redis, Docker, the grading image's tools
set -eu
cd "$(dirname "$0")/.."
what=${1:?run, dev, bench, grade or ci}
vmms=${2:-}
venv=.venv

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }
lack() { say "missing: $*"; exit 3; }

# Debian packages, as root or by sudo; else the command to type.
packages() {
  if [ "$(id -u)" = 0 ]; then as_root=; elif command -v sudo >/dev/null; then as_root=sudo
  else lack "$*. As root, type: apt-get install $*"; fi
  command -v apt-get >/dev/null || lack "$*. Install it with this system's package manager"
  say "installing $*"
  DEBIAN_FRONTEND=noninteractive
  export DEBIAN_FRONTEND
  $as_root apt-get -qq update >/dev/null || say "apt-get update did not succeed; trying with the lists there are"
  $as_root apt-get -qq install --no-install-recommends -y "$@" >/dev/null \
    || fail "apt-get install $* did not succeed; type it to see why"
}

python=
for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
  if command -v "$candidate" >/dev/null \
    && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed: apt-get install python3 python3-venv"

docker_answers() {
  command -v docker >/dev/null && timeout 5 docker version >/dev/null 2>&1
}

# PROGRAM PACKAGE: remembers the package if the program is not there.
wanted=
wants() { command -v "$1" >/dev/null || wanted="$wanted $2"; }

# A compiler of this machine's own, for machines that see its programs.
wants_compiler() {
  printf '#include <stdio.h>\nint main(void) { return 0; }\n' | cc -x c -o /dev/null - 2>/dev/null \
    || wanted="$wanted gcc libc6-dev"
}

needs_root() { [ "$(id -u)" = 0 ] || lack "$1. Type: sudo make grade VMMS=$vmms"; }

# What the examples are graded with on a back-end of this machine.
grading() {
  case $1 in
    localSandbox) wants_compiler; wants bwrap bubblewrap ;;
    localDocker)
      docker_answers || {
        needs_root "a Docker engine that answers, or the rights of root for a private one"
        wants dockerd docker.io; wants iptables iptables
      } ;;
    distDocker)
      needs_root "the rights of root"
      wants dockerd docker.io; wants iptables iptables; wants ip iproute2; wants openssl openssl ;;
    ec2SSH | tashiSSH)
      needs_root "the rights of root"
      wants_compiler; wants sshd openssh-server; wants ssh-keygen openssh-client ;;
  esac
  # shellcheck disable=SC2086
  [ -z "$wanted" ] || packages $wanted
  # Newer releases have the client in a package of its own.
  case $1 in *Docker) command -v docker >/dev/null || packages docker-cli ;; esac
}

if [ "$what" = grade ]; then
  [ -n "${TANGO_CONFIG:-}" ] || grading "$vmms"
elif [ "$what" = ci ]; then
  packages redis-server docker.io iptables iproute2 bubblewrap mmdebstrap make gcc procps busybox curl systemd \
    openssh-server openssh-client openssl podman conmon runc docker-registry
elif ! command -v bwrap >/dev/null && ! docker_answers; then
  packages bubblewrap
fi
# The examples are graded with the host's own compiler and make.
command -v make >/dev/null || packages make

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then packages python3-venv; fi
[ -x $venv/bin/python ] && $venv/bin/python -c pass 2>/dev/null || { rm -rf $venv; "$python" -m venv $venv; }

lock=requirements.lock
[ "$what" = run ] || lock=requirements-dev.lock
stamp=$venv/installed-$lock
if [ ! -f "$stamp" ] || [ "$lock" -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  say "installing the Python packages of $lock"
  $venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" \
    || fail "pip could not install $lock; type: $venv/bin/pip install --require-hashes -r $lock"
  $venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . \
    || fail "pip could not install the project itself; type: $venv/bin/pip install --no-deps -e ."
  touch "$stamp"
fi

# One of the peers wants an older redis than the service does, so they live apart.
if [ "$what" = bench ]; then
  apart=.cache/bench-venv
  lock=requirements-bench.lock
  stamp=$apart/installed
  if [ ! -f "$stamp" ] || [ "$lock" -nt "$stamp" ]; then
    say "installing the Python packages of $lock"
    mkdir -p .cache
    [ -x $apart/bin/python ] || "$python" -m venv $apart
    $apart/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" \
      || fail "pip could not install $lock; type: $apart/bin/pip install --require-hashes -r $lock"
    touch "$stamp"
  fi
fi
