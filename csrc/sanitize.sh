#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UBSan into a separate directory, then runs the tests of
# the ops against it. Usage: csrc/sanitize.sh [output directory]      PYTHON is honored.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/sanitize}" && cd "${1:-build/sanitize}" && pwd)
python=$(command -v "${PYTHON:-python3}")
[[ $python = /* ]] || python=$PWD/$python
cxx=${CXX:-g++}

# The package and its tests are copied, so that nothing imports the ordinary build.
rm -rf "$out/mmssl" "$out/tests"
cp -r mmssl tests pyproject.toml "$out/"
rm -f "$out"/mmssl/*.so
MMSSL_CUDA=0 MMSSL_SANITIZE=address,undefined "$python" setup.py -q build_ext \
  --build-lib "$out" --build-temp "$out/objects"
for module in _C _host; do
  ls "$out/mmssl/$module".*so >/dev/null 2>&1 || { echo "error: $module was not built" >&2; exit 1; }
done

cd "$out"
# Leaks are Python's own. The CUDA sources are compiled by their tests, not by this build. A test asks
# for 2^62 bytes, which the allocator must refuse as it does elsewhere instead of ending the process.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libubsan.so)"
exec "$python" -m pytest tests/ops -q -p no:cacheprovider --ignore tests/ops/test_cuda_source.py \
  --ignore tests/ops/test_emulated.py
