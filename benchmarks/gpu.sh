#!/usr/bin/env bash
# What to do with 15 minutes on a CUDA machine that has torch, in three calls; no network is needed.
#
#   bash benchmarks/gpu.sh check|ops|step [--rehearse] [--wheels DIR]
#   bash benchmarks/gpu.sh --rehearse
#
# check  (200 s): load the binaries that came with the checkout (made by `make cuda-build`), or
#                 build them; a short pass over every op; the tests that need a GPU; memcheck and
#                 racecheck on spmm, info_nce and masked_topk
# ops    (180 s): ceilings of the device, then every op against its peers and its limit; info_nce with
#                 all three sets of kernels
# step   (180 s): training steps against the released arithmetic, with their phases; full ranking
#
# Everything a call has written is in one file, OUT/gpu-CALL.tar, also if a command fails or the call is
# stopped. --rehearse runs the same commands at tiny sizes on the CPU, without CUDA and sanitizers; those of
# all three calls if none is named.
# --wheels: a folder of wheels for what the machine lacks, made elsewhere by
#   pip download -d DIR --only-binary :all: --no-deps --python-version 3.12 msgspec tomli-w hypothesis sortedcontainers
# Environment: OUT (default benchmarks/results/gpu), PYTHON, CHECK_S, OPS_S and STEP_S (the budgets in
# seconds), MMSSL_DATA=folder of the real data sets.
#
# Not run on a GPU yet.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

call="" rehearse="" wheels=""
while [ $# -gt 0 ]; do
  case $1 in
    check | ops | step) call=$1 ;;
    --rehearse) rehearse=1 ;;
    --wheels)
      [ $# -ge 2 ] || { echo "error: $1 needs a value (see --help)" >&2; exit 2; }
      wheels=$2
      shift
      ;;
    -h | --help) sed -n '2,24s/^# \{0,1\}//p' benchmarks/gpu.sh; exit 0 ;;
    *) echo "error: expected check, ops or step, got $1 (see --help)" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$call$wheels" ] && [ -n "$rehearse" ]; then
  failed=0
  for call in check ops step; do
    bash benchmarks/gpu.sh "$call" --rehearse || failed=1
  done
  exit "$failed"
fi
[ -n "$call" ] || { echo "error: expected check, ops or step (see --help)" >&2; exit 2; }
if [ -n "$wheels" ] && [ ! -d "$wheels" ]; then
  echo "error: --wheels: expected a folder, got $wheels" >&2
  exit 2
fi

python=${PYTHON:-python3}
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
device=cuda size=() times=1
[ -z "$rehearse" ] || device=cpu size=(--smoke) times=10 # a laptop may take its time
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# Without it torch looks for nvcc on PATH, but a folder that does not exist would mislead it.
if [ -d "${CUDA_HOME:=/usr/local/cuda}" ]; then export CUDA_HOME; else unset CUDA_HOME; fi

if [ -z "$rehearse" ]; then
  "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo "error: $python has no torch with a usable CUDA device" >&2
    exit 2
  }
fi
scratch=$(mktemp -d) work=$scratch/$call
mkdir "$work"
if [ -n "$wheels" ]; then # in a separate folder: the installed packages stay as they are
  site=$scratch/site
  "$python" -m pip install -q --no-index --no-deps --find-links "$wheels" --target "$site" \
    "$wheels"/*.whl || { rm -rf "$scratch"; echo "error: --wheels: pip failed" >&2; exit 2; }
  rm -rf "$site"/torch "$site"/numpy # the machine's are the ones to measure
  export PYTHONPATH=$PYTHONPATH:$site
fi

# One file comes back, whatever happens.
finish() {
  tar -cf "$out/gpu-$call.tar" -C "$scratch" "$call" && echo "$SECONDS s in all; $out/gpu-$call.tar"
  rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 143' TERM INT

failed=0
# stage NAME SECONDS COMMAND...: runs a command no longer than that, its output in NAME.log.
stage() {
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  echo "== $name"
  # Killed ten seconds after it was told to stop; 0 would be no limit.
  timeout -k 10 $((limit > 0 ? limit : 1)) "$@" >"$work/$name.log" 2>&1
  code=$?
  tail -n "${LINES_SHOWN:-12}" "$work/$name.log"
  case $code in
    0) echo "== $name: ok after $((SECONDS - start)) s" ;;
    124 | 137) echo "== $name: stopped at its $limit s; what it had written is kept" ;;
    *) echo "== $name: FAILED after $((SECONDS - start)) s" ;;
  esac
  [ "$code" -eq 0 ] || failed=1
  return "$code"
}

{
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader --id=0 2>/dev/null || echo "no GPU"
  "$python" -c 'import torch; print("torch", torch.__version__)'
  echo "commit $(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown)"
  for module in pytest hypothesis msgspec tomli_w tqdm; do
    "$python" -c "import $module" 2>/dev/null || echo "not installed: $module (see --wheels)"
  done
} | tee "$work/machine.txt"

# The module that has to be there, and whether it takes nvcc to build it.
needed=cuda with_cuda=1
[ -z "$rehearse" ] || needed=ops with_cuda=0
loads() {
  "$python" -c "from mmssl import _extension as e, ops; assert e.$needed is not None, e.missing
print('loaded:', e.$needed.__file__)"
}

# modules SECONDS: builds what did not come along or is older than the sources. Each call does, since it
# may have a machine of its own.
modules() {
  loads >"$work/load.log" 2>&1 && return
  stage build "$1" env MMSSL_CUDA=$with_cuda "$python" setup.py -q build_ext --inplace || return
  loads || { failed=1; return 1; }
}

check() {
  local budget=$((${CHECK_S:-200} * times)) tool sanitizer="" options=()
  modules $((budget * 4 / 10)) || return
  stage pass $((budget / 4)) "$python" -m benchmarks.gpu_pass --device $device
  # The plug-in may be missing; the options of pyproject.toml need it.
  stage tests $((budget * 4 / 10)) "$python" -m pytest tests/ops -q -p no:cacheprovider \
    -o addopts=--strict-markers -m gpu
  for tool in "${CUDA_HOME-}/bin/compute-sanitizer" \
    "${CUDA_HOME-}/compute-sanitizer/compute-sanitizer" "$(command -v compute-sanitizer)"; do
    [ -x "$tool" ] && sanitizer=$tool && break
  done
  if [ -n "$rehearse" ] || [ -z "$sanitizer" ]; then
    echo "left out: memcheck and racecheck (a rehearsal, or no compute-sanitizer)"
    return
  fi
  # Only this package's kernels: torch's own are slow to check and not ours to judge.
  if "$sanitizer" --help 2>/dev/null | grep -q -- --kernel-name; then
    options=(--kernel-name kernel_substring=mmssl)
  fi
  for tool in memcheck racecheck; do
    # Without the caching allocator each tensor has bounds of its own.
    stage "$tool" $(((budget - SECONDS) / 2)) env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      "$sanitizer" --tool $tool --error-exitcode 9 "${options[@]}" \
      "$python" -m benchmarks.gpu_pass --dtypes float32 bfloat16 --only spmm info_nce masked_topk
  done
}

# bench NAME SECONDS ARGUMENTS...: a suite into a folder of its own. No case begins after two thirds of
# the time; files are written after every case, so what is stopped loses one.
bench() {
  local name=$1 limit=$2
  shift 2
  stage "$name" "$limit" "$python" -m mmssl bench "$@" --device $device --out "$work/$name" \
    --budget $((limit * 2 / 3)) "${size[@]}"
}

ops() {
  local budget=$((${OPS_S:-180} * times))
  modules $((budget * 4 / 10)) || return
  cp docs/cuda.md "$work/bounds-before.md"
  [ -n "$rehearse" ] || stage ceilings $((budget / 9)) "$python" -m benchmarks.probes_gpu
  bench info_nce $((budget * 3 / 9)) ops --only info_nce
  # The same with mma.sync instead of wgmma, and with the oldest kernels.
  MMSSL_INFO_NCE=mma bench info_nce_mma $((budget / 9)) ops --only info_nce --peers native
  MMSSL_INFO_NCE=tiles bench info_nce_tiles $((budget / 9)) ops --only info_nce --peers native
  bench propagate $((budget * 2 / 9)) ops --only propagate
  bench others $((budget / 9)) ops
}

step() {
  local budget=$((${STEP_S:-180} * times))
  modules $((budget * 4 / 10)) || return
  bench step $((budget * 7 / 9)) step
  bench evaluate $((budget * 2 / 9)) evaluate
}

"$call"
exit "$failed"
