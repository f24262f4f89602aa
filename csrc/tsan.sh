#!/usr/bin/env bash
# Builds the CPU kernels and their race tests (csrc/ops/*/race.cpp) with ThreadSanitizer and runs them at
# every SIMD level of this machine. Usage: csrc/tsan.sh [output directory]          CXX is honored.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/tsan}
mkdir -p "$out"
cxx=${CXX:-g++}
flags=(-std=c++20 -O1 -g1 -fsanitize=thread -ffp-contract=off -w -Icsrc -pthread)

# Objects of files that no longer exist must not be linked.
find "$out" -name '*.o' ! -newer csrc/tsan.sh -delete
# Compiles what has changed since the last time, two at a time. Bindings need torch and are left out.
kernels=$(find csrc/ops -name '*.cpp' ! -name cpu.cpp ! -name cuda.cpp ! -name emulator_test.cpp)
for source in $kernels csrc/common/*.cpp csrc/host/index.cpp csrc/host/lists.cpp csrc/tsan/race.cpp; do
  object=$out/$(echo "${source%.cpp}" | tr / _).o
  newest=$(find csrc -name '*.h' -newer "$object" 2>/dev/null | head -1 || true)
  if [[ ! -e $object || $source -nt $object || -n $newest ]]; then
    printf '%s\0%s\0' "$source" "$object"
  fi
done | xargs -0 -r -n 2 -P "${JOBS:-2}" sh -c '"$0" '"$(printf '%q ' "${flags[@]}")"' -c "$1" -o "$2"' "$cxx"
"$cxx" "${flags[@]}" "$out"/*.o -o "$out/race"

# Without address randomization, which exceeds what the sanitizer's map of memory allows for.
for level in default avx2 avx512; do
  ATEN_CPU_CAPABILITY=$level TSAN_OPTIONS=halt_on_error=1 setarch -R "$out/race"
done
