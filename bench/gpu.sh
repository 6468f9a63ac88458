#!/usr/bin/env bash
# Benchmark tokenmill on an NVIDIA GPU with the official vLLM (pip install '.[gpu]'):
#
#   bench/gpu.sh [--rows N] [--sweep] [--dry-run] [FOLDER]
#
# Runs W1 to W3 with tokenmill, one LLM.generate call and `vllm bench throughput`, in bf16 and fp8,
# and with one replica in its own process, which counts the tokens that vLLM cached and the requests
# that it preempted. Results are kept in FOLDER (out/gpu), one folder per case; cases that already
# have results are not run again.
#
#   --rows N    rows per case (default: 2000)
#   --sweep     try settings of the engine instead
#   --dry-run   test the script without a GPU: a model of two layers, 8 rows
#
# Set PYTHON to use a Python other than .venv/bin/python.
set -euo pipefail

rows=2000 dry='' sweep='' folder=out/gpu
while (($#)); do
  case $1 in
    --rows) rows=$2; shift ;;
    --sweep) sweep=yes ;;
    --dry-run) dry=yes ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit ;;
    -*) echo "gpu.sh: unknown option: $1" >&2; exit 2 ;;
    *) folder=$(realpath -m "$1") ;;
  esac
  shift
done

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
watcher=''
trap 'stop_watching' EXIT

# Log the GPU once a second: time, utilization, memory bandwidth utilization, MiB, watts.
watch() {
  [[ $dry ]] && return
  nvidia-smi --query-gpu=timestamp,utilization.gpu,utilization.memory,memory.used,power.draw \
    --format=csv,noheader,nounits --loop=1 >"$1" &
  watcher=$!
}

stop_watching() {
  [[ $watcher ]] || return 0
  kill "$watcher" && wait "$watcher" || true
  watcher=''
}

# A setting that the engine refuses must not stop the sweep.
attempt() {
  local case=$1 name=$2
  shift 2
  [[ -e $case/$name.json ]] && return
  echo "$(basename "$case"): $name"
  watch "$case/$name.csv"
  "$@" >"$case/$name.out" 2>&1 || echo "  failed: $case/$name.out"
  stop_watching
}

# The code of `vllm bench throughput`, because vLLM's CPU build lacks the command itself.
bench_throughput='
from vllm.benchmarks import throughput
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
throughput.add_cli_args(parser)
throughput.main(parser.parse_args())
'

throughput() {
  local options
  mapfile -t options <"$1/throughput.txt"
  VLLM_ENABLE_V1_MULTIPROCESSING=0 "$python" -c "$bench_throughput" \
    "${options[@]}" --output-json "$1/vllm.json"
}

if [[ $dry ]]; then
  card=none
  "$python" -m bench.gpu prepare "$folder" --small --rows 8
else
  card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
  "$python" -m bench.gpu prepare "$folder" --rows "$rows"
fi
echo "GPU: $card"

for case in "$folder"/*/; do
  case=${case%/}
  [[ -e $case/job.yaml ]] || continue
  if [[ $(basename "$case") == sweep-* ]]; then
    [[ $sweep ]] && attempt "$case" replica "$python" -m bench.gpu run "$case" replica
    continue
  fi
  [[ $sweep ]] && continue
  for system in tokenmill llm replica; do
    attempt "$case" "$system" "$python" -m bench.gpu run "$case" "$system"
  done
  # `vllm bench throughput` cannot score, so W3 has no options for it.
  if [[ -e $case/throughput.txt ]]; then
    attempt "$case" vllm throughput "$case"
  fi
done
"$python" -m bench.gpu table "$folder" --card "$card"
