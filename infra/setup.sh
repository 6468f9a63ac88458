#!/usr/bin/env bash
# Create .venv with torch for the CPU, everything in requirements/cpu.txt, and tokenmill itself.
#
# Every package is checked against a hash. If nothing has changed since the last time, this exits
# immediately. By default it uses the first suitable Python on the PATH; PYTHON=/path/to/python
# selects another one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
readonly STAMP=$VENV/tokenmill-setup
readonly PYTORCH_INDEX=https://download.pytorch.org/whl/cpu

say() { echo "set-up: $*"; }
die() {
  echo "set-up: error: $*" >&2
  exit 1
}

# Everything the virtual environment depends on. That includes its path, as it cannot be moved.
key() { { pwd && cat infra/setup.sh pyproject.toml requirements/*.txt; } | sha256sum; }

is_suitable() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

# Run each candidate: pyenv puts shims on the PATH for versions that it then refuses to start.
find_python() {
  local candidates=${PYTHON:-python3.11 python3.12 python3} candidate
  for candidate in $candidates; do
    if is_suitable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or 3.12 (tried: $candidates); install one, or name it: make PYTHON=/path/to/python ..."
}

# vLLM's library needs libnuma, but does not report a missing one until the first prompt.
check_machine() {
  case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) die "$(uname -s) on $(uname -m): vLLM and torch for the CPU come for Linux on x86_64 and aarch64 only" ;;
  esac
  "$1" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    die "vLLM needs libnuma.so.1; on Debian and Ubuntu: apt install libnuma1"
}

# Recreate an unfinished environment: pip takes a partly installed package for a complete one.
needs_venv() {
  [[ "$(cat $STAMP 2>/dev/null)" == unfinished ]] || ! is_suitable $VENV/bin/python ||
    ! $VENV/bin/python -c 'import pip' 2>/dev/null
}

make_venv() {
  local version
  version=$("$1" -c 'import platform; print(platform.python_version())')
  "$1" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$1 has no venv module; on Debian and Ubuntu: apt install python${version%.*}-venv"
  say "$VENV with Python $version ($(command -v "$1"))"
  "$1" -m venv --clear $VENV
}

pip_install() {
  $VENV/bin/python -m pip --disable-pip-version-check --no-input install \
    -qq --no-deps --no-warn-script-location "$@"
}

# Try pip's configured index first, since a mirror may have the CPU build. PyPI does not have it;
# PyTorch's index does.
install_torch() {
  local first
  say "$(grep -o '^torch==[^ ]*' requirements/torch.txt) (200 MB)"
  first=$(pip_install --require-hashes -r requirements/torch.txt 2>&1) ||
    pip_install --require-hashes -r requirements/torch.txt --index-url $PYTORCH_INDEX ||
    die "torch did not install from pip's own indexes (${first##*$'\n'}) nor from $PYTORCH_INDEX (see above)"
}

install_packages() {
  say "$(grep -c '^[a-z]' requirements/cpu.txt) packages of requirements/cpu.txt (700 MB; the first time takes minutes)"
  pip_install --require-hashes --only-binary=:all: -r requirements/cpu.txt ||
    die "a package of requirements/cpu.txt did not install (see above)"
}

# No build isolation: the build backend was just installed with a checked hash, and isolation would
# download another one without a check.
install_tokenmill() {
  say "tokenmill, from this folder"
  pip_install --no-build-isolation --editable . || die "tokenmill did not install (see above)"
}

# PyPI's builds of these load CUDA libraries and make `import vllm` fail; text models don't need
# them.
check_result() {
  local intruders
  intruders=$($VENV/bin/python -c '
import importlib.util
names = "torchvision", "torchaudio", "torchcodec", "triton"
print(*filter(importlib.util.find_spec, names))')
  [[ -z $intruders ]] ||
    die "$VENV holds $intruders, which break torch for the CPU; remove $VENV and try again"
  say "tokenmill $($VENV/bin/tokenmill version) is ready"
}

main() {
  local python
  if [[ "$(cat $STAMP 2>/dev/null)" == "$(key)" ]] && is_suitable $VENV/bin/python; then
    return
  fi
  if needs_venv; then
    python=$(find_python)
    check_machine "$python"
    make_venv "$python"
  else
    check_machine $VENV/bin/python
    say "$VENV is there and is brought up to date"
  fi
  echo unfinished >$STAMP
  install_torch
  install_packages
  install_tokenmill
  check_result
  key >$STAMP
}

main
