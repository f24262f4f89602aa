#!/usr/bin/env bash
# Build, test, sanitize and measure on a CUDA machine that has torch; no network is needed.
#
#   bash benchmarks/gpu.sh [--part build|test|sanitize|bench] [--wheels DIR] [--fresh]
#
# Without --part: every part that has not succeeded yet for these sources, under 8 minutes in all; each
# has a budget of its own, after which it is stopped. With --part: that one, whatever was done before.
# --wheels: a folder of wheels for what the machine lacks, made elsewhere by
#   pip download -d DIR pytest hypothesis pytest-benchmark scipy pybind11 matplotlib
# --fresh forgets what was done. Environment: OUT (default benchmarks/results/gpu), PYTHON, and
# BUILD_S, TEST_S, SANITIZE_S, BENCH_S, the budgets in seconds. MMSSL_DATA=folder: real data sets.
#
# Not run on a GPU yet.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

readonly PARTS="build test sanitize bench"
part="" wheels="" fresh=""
while [ $# -gt 0 ]; do
  case $1 in
    --part | --wheels)
      [ $# -ge 2 ] || { echo "error: $1 needs a value (see --help)" >&2; exit 2; }
      [ "$1" = --part ] && part=$2 || wheels=$2
      shift
      ;;
    --fresh) fresh=1 ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' benchmarks/gpu.sh; exit 0 ;;
    *) echo "error: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
  shift
done
if [ -n "$part" ] && [[ " $PARTS " != *" $part "* ]]; then
  echo "error: --part: expected one of $PARTS, got $part" >&2
  exit 2
fi
if [ -n "$wheels" ] && [ ! -d "$wheels" ]; then
  echo "error: --wheels: expected a folder, got $wheels" >&2
  exit 2
fi

python=${PYTHON:-python3}
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
state=$out/state
[ -z "$fresh" ] || rm -rf "$state"
mkdir -p "$state"
# What a part has succeeded for: there may be no git here, and files may have changed.
sources=$(find csrc mmssl benchmarks tests setup.py pyproject.toml -type f \( -name '*.py' -o -name '*.cpp' \
  -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.toml' \) | LC_ALL=C sort | xargs cat | cksum)
commit=$(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# Without it torch looks for nvcc on PATH, but a folder that does not exist would mislead it.
if [ -d "${CUDA_HOME:=/usr/local/cuda}" ]; then export CUDA_HOME; else unset CUDA_HOME; fi

"$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
  echo "error: $python has no torch with a usable CUDA device" >&2
  exit 2
}
name=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader --id=0 2>/dev/null)
echo "${name:-unknown GPU}; $("$python" -c 'import torch; print("torch", torch.__version__)'); commit $commit"

if [ -n "$wheels" ]; then # in a separate folder: the installed packages stay as they are
  site=$out/site
  if [ ! -d "$site" ]; then
    "$python" -m pip install -q --no-index --no-deps --find-links "$wheels" --target "$site" \
      "$wheels"/*.whl || { rm -rf "$site"; echo "error: --wheels: pip failed" >&2; exit 2; }
    rm -rf "$site"/torch "$site"/numpy # the machine's are the ones to measure
  fi
  export PYTHONPATH=$PYTHONPATH:$site
fi

has() { "$python" -c "import $1" 2>/dev/null; }

# limited SECONDS COMMAND...: stopped after so long, by SIGKILL ten seconds later.
limited() { timeout -k 10 $(($1 > 0 ? $1 : 1)) "${@:2}"; } # 0 would be no limit

build() {
  limited "${BUILD_S:-80}" env MMSSL_CUDA=1 "$python" setup.py -q build_ext --inplace || return 1
  "$python" - <<'CHECK'
from mmssl import _extension as e
assert e.cuda is not None, e.missing
print("built and loaded:", e.cuda.__name__)
CHECK
}

run_tests() {
  local budget=${TEST_S:-110} start=$SECONDS code
  limited "$budget" "$python" -m benchmarks.gpu_pass || return 1
  if ! has pytest || ! has hypothesis; then
    echo "pytest or hypothesis is missing: only the short pass over every op was run (see --wheels)"
    return 0
  fi
  # The plug-in may be missing; the options of pyproject.toml need it.
  local options=(-q -p no:cacheprovider -o "addopts=--strict-markers")
  echo "tests that need a GPU:"
  limited $((budget - (SECONDS - start))) "$python" -m pytest tests "${options[@]}" -m gpu || return 1
  echo "the other tests of the ops:"
  limited $((budget - (SECONDS - start))) "$python" -m pytest tests/ops tests/test_graph.py \
    "${options[@]}" -m "not gpu" --ignore tests/ops/test_cuda_source.py -x
  code=$?
  if [ "$code" -eq 124 ]; then
    echo "stopped at the budget; those that need a GPU had passed"
    return 0
  fi
  return "$code"
}

sanitize() {
  local tool sanitizer="" budget=${SANITIZE_S:-110} options=() failed=0
  for tool in "${CUDA_HOME-}/bin/compute-sanitizer" \
    "${CUDA_HOME-}/compute-sanitizer/compute-sanitizer" "$(command -v compute-sanitizer)"; do
    [ -x "$tool" ] && sanitizer=$tool && break
  done
  if [ -z "$sanitizer" ]; then
    echo "left out: compute-sanitizer is neither in ${CUDA_HOME:-CUDA_HOME} nor on PATH"
    return 3
  fi
  # Only this package's kernels: torch's own are slow to check and not ours to judge.
  if "$sanitizer" --help 2>/dev/null | grep -q -- --kernel-name; then
    options=(--kernel-name kernel_substring=mmssl)
  fi
  for tool in memcheck racecheck initcheck; do
    echo "$tool:"
    # Without the caching allocator each tensor has bounds of its own.
    limited $((budget / 3)) env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      "$sanitizer" --tool "$tool" --error-exitcode 9 "${options[@]}" \
      "$python" -m benchmarks.gpu_pass --dtypes float32 bfloat16 >"$out/sanitize-$tool.log" 2>&1
    case $? in
      0) echo "  clean" ;;
      124 | 137) echo "  stopped at its $((budget / 3)) s, see sanitize-$tool.log"; failed=1 ;;
      *) echo "  FOUND SOMETHING, see sanitize-$tool.log"; tail -n 5 "$out/sanitize-$tool.log"; failed=1 ;;
    esac
  done
  return "$failed"
}

bench() {
  local budget=${BENCH_S:-170} failed=0
  # Shares of the budget. No case begins after two thirds of a share; files are written after every
  # case, so what is stopped loses one.
  measure() { # SUITE TENTHS
    local share=$((budget * $2 / 10)) code
    limited "$share" "$python" -m mmssl bench "$1" --device cuda --out "$out" \
      --budget $((share * 2 / 3)) >"$out/bench-$1.log" 2>&1
    code=$?
    grep -E '^[a-z].*\)$|^  (native|limit|paper|released|mmssl)' "$out/bench-$1.log" | tail -n 40
    case $code in
      0) ;;
      124 | 137) echo "$1: stopped at its $share s; what was measured is in $out" ;;
      *) tail -n 3 "$out/bench-$1.log"; failed=1 ;;
    esac
  }
  measure ops 7
  measure step 2
  measure evaluate 1
  return "$failed"
}

run() { # PART
  local done_file=$state/$1 start=$SECONDS code function=$1
  if [ -z "$part" ] && [ "$(cat "$done_file" 2>/dev/null)" = "$sources" ]; then
    echo "== $1: done before (--part $1 runs it again)"
    return 0
  fi
  echo "== $1"
  [ "$1" != test ] || function=run_tests
  "$function" 2>&1 | tee "$out/$1.log"
  code=${PIPESTATUS[0]}
  echo "== $1: $([ "$code" -eq 0 ] && echo ok || { [ "$code" -eq 3 ] && echo left out; } || echo FAILED)" \
    "after $((SECONDS - start)) s"
  if [ "$code" -eq 0 ]; then echo "$sources" >"$done_file"; else rm -f "$done_file"; fi
  return "$code"
}

failed=0
for name in ${part:-$PARTS}; do
  run "$name" && continue
  code=$?
  [ "$code" -eq 3 ] || failed=1
  [ "$name" != build ] || break # nothing else makes sense
done
echo "$SECONDS s in all; files in $out"
exit "$failed"
