# shellcheck shell=bash
# Functions shared by the scripts in tools/ and .ci/. Source it after `set -euo pipefail`; it does nothing by
# itself but set the variables below.
#
#   REWINDFS_REPO      the checkout
#   REWINDFS_CACHE     what is worth keeping between runs (default ~/.cache)
#   CARGO_TARGET_DIR   one target directory for everything, because RocksDB takes a quarter of an hour to compile

# An error inside $(…) ends the script as well.
shopt -s inherit_errexit

REWINDFS_REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
export HOME="${HOME:-/root}"
REWINDFS_CACHE="${REWINDFS_CACHE:-$HOME/.cache}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$REWINDFS_CACHE/rewindfs-target}"
REWINDFS_TOOLS="$REWINDFS_CACHE/rewindfs-tools"
CARGO_DENY_VERSION="0.20.2"
# shellcheck disable=SC2034 # read by the scripts that source this file
FSX_VERSION="0.3.2"
# shellcheck disable=SC2034
PJDFSTEST_VERSION="0.2.2"

# What a build needs, and what the tests and the demo need on top.
# shellcheck disable=SC2034 # read by the scripts that source this file
BUILD_PACKAGES=(gcc g++ make clang libclang-dev pkg-config)
# shellcheck disable=SC2034
DEMO_PACKAGES=(fuse3 attr)
# shellcheck disable=SC2034
TEST_PACKAGES=(acl e2fsprogs git mount rsync sqlite3 zstd strace python3 python3-venv shellcheck)

# Sends everything to stderr: functions that answer do so on stdout.
say() { printf '%s\n' "$*" >&2; }
step() { printf '\n== %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints a command as one could type it, then runs it.
run() {
  {
    printf '$'
    printf ' %q' "$@"
    printf '\n'
  } >&2
  "$@"
}

# Runs a command as root: directly, or through sudo.
as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    die "this needs root and there is no sudo: $*"
  fi
}

# Runs a command while holding the lock NAME, so that two scripts at once do not install over each other.
with_lock() {
  local name=$1
  shift
  mkdir -p "$REWINDFS_CACHE"
  (
    exec 9>"$REWINDFS_CACHE/rewindfs-$name.lock"
    if ! flock --nonblock 9; then
      say "waiting for another run that holds the lock '$name' …"
      flock 9
    fi
    # 9>&-: a process the command leaves behind must not keep the lock.
    "$@" 9>&-
  )
}

# Runs a long command and says once a minute that it is still at work, and how far RocksDB is.
with_heartbeat() {
  local label=$1 ticker status=0
  shift
  _heartbeat "$label" &
  ticker=$!
  "$@" || status=$?
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  return "$status"
}

_heartbeat() {
  local label=$1 ticks=0 objects before=0 note
  # Short sleeps, and an end when the script is gone: nothing of ours may hold its output open for long.
  while sleep 5 && kill -0 "$$" 2>/dev/null; do
    ticks=$((ticks + 1))
    ((ticks % 12 == 0)) || continue
    objects=$(find "$CARGO_TARGET_DIR"/release/build/librocksdb-sys-*/out -name '*.o' 2>/dev/null | wc -l) || true
    note=
    ((objects == before)) || note=", RocksDB: $objects of about 340 C++ files compiled"
    before=$objects
    say "   … $label: still at work after $((ticks / 12)) min$note"
  done
}

# Installs those of the named Debian packages that are missing.
apt_need() {
  local package missing=()
  command -v dpkg-query >/dev/null || {
    say "not a Debian system: make sure that these are installed: $*"
    return 0
  }
  for package in "$@"; do
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      missing+=("$package")
  done
  ((${#missing[@]} == 0)) && return 0
  say "installing Debian packages: ${missing[*]}"
  with_lock apt _apt_install "${missing[@]}"
}

_apt_install() {
  local options=(--yes --no-install-recommends -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0)
  # The package lists of a long-lived machine may be absent or stale; they are fetched only then.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 "${options[@]}" "$@" >&2 && return 0
  say "updating the package lists first"
  as_root apt-get update --quiet=2 >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 "${options[@]}" "$@" >&2
}

# Makes sure of cargo; installing a toolchain is the user's decision.
need_cargo() {
  command -v cargo >/dev/null || [[ ! -x $HOME/.cargo/bin/cargo ]] || PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null || die "cargo is missing. Install Rust 1.88 or newer, for example with
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
and run this again (Debian 12's own cargo is too old)."
}

# Makes sure of cargo's subcommands that come as toolchain components.
need_cargo_component() {
  local component
  for component in "$@"; do
    cargo "$component" --version >/dev/null 2>&1 ||
      die "cargo $component is missing; install it with: rustup component add ${component/#fmt/rustfmt}"
  done
}

# Makes sure that this machine can mount a FUSE filesystem at all.
need_fuse() {
  [[ -c /dev/fuse ]] || as_root modprobe fuse 2>/dev/null || true
  [[ -c /dev/fuse ]] || die "there is no /dev/fuse: load the kernel module 'fuse' (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
}

# Builds the program and puts a private link to it at $1, so that another checkout which builds into the same
# target directory cannot exchange it under a running script.
build_rewindfs() {
  [[ -e $CARGO_TARGET_DIR/release/rewindfs ]] ||
    say "The first build compiles RocksDB: about 14 minutes on two cores, once."
  with_lock build _build_rewindfs "$1"
}

_build_rewindfs() {
  # No cd: the caller may have given paths relative to where it is.
  with_heartbeat "cargo build" \
    run cargo build --manifest-path "$REWINDFS_REPO/Cargo.toml" --locked --release --bin rewindfs >&2
  ln -f "$CARGO_TARGET_DIR/release/rewindfs" "$1" 2>/dev/null || cp -f "$CARGO_TARGET_DIR/release/rewindfs" "$1"
}

# Prints the path of a python that has the packages of tools/requirements.txt.
python_venv() {
  local venv="$REWINDFS_CACHE/rewindfs-venv"
  with_lock venv _python_venv "$venv" >&2
  printf '%s\n' "$venv/bin/python3"
}

_python_venv() {
  local venv=$1 wanted="$REWINDFS_REPO/tools/requirements.txt"
  cmp --silent "$wanted" "$venv/installed" && "$venv/bin/python3" -c 'import numpy' 2>/dev/null && return 0
  say "making a Python environment in $venv"
  rm -rf "$venv"
  python3 -m venv "$venv" || {
    apt_need python3-venv
    /usr/bin/python3 -m venv --clear "$venv"
  }
  # --no-deps: the list is complete, and scikit-learn is wanted for the data set it carries, not for its code.
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$wanted"
  cp "$wanted" "$venv/installed"
}

# Prints the path of cargo-deny, or fails; it is compiled (3 to 6 minutes on two cores) only when $1 is "install".
cargo_deny() {
  local own="$REWINDFS_TOOLS/bin/cargo-deny"
  if [[ -x $own ]]; then
    printf '%s\n' "$own"
  elif command -v cargo-deny; then
    :
  elif [[ ${1:-} == install ]]; then
    with_lock tools with_heartbeat "cargo install cargo-deny" \
      cargo install cargo-deny --version "$CARGO_DENY_VERSION" --locked --quiet --root "$REWINDFS_TOOLS" >&2 || return
    printf '%s\n' "$own"
  else
    return 1
  fi
}

# Prints the path of the program of a crate, which is compiled where it is missing.
crates_tool() {
  local name=$1 version=$2
  local own="$REWINDFS_TOOLS/bin/$name"
  if [[ ! -x $own ]]; then
    with_lock tools with_heartbeat "cargo install $name" \
      cargo install "$name" --version "$version" --locked --quiet --root "$REWINDFS_TOOLS" >&2 || return
  fi
  printf '%s\n' "$own"
}
