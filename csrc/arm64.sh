#!/usr/bin/env bash
# Compiles the modules and the race tests for arm64 with Debian's cross compiler, which is the check that the
# portable path needs nothing of x86, and runs the race tests under qemu: every kernel on one thread and on
# several, with the same bits.
# Needs: apt install g++-aarch64-linux-gnu qemu-user     Usage: csrc/arm64.sh [output directory]
# PYTHON (with torch and pybind11, whose headers serve every processor) is honored.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/arm64}" && cd "${1:-build/arm64}" && pwd)
python=${PYTHON:-python3}
cxx=aarch64-linux-gnu-g++
for tool in $cxx qemu-aarch64; do
  command -v $tool >/dev/null || { echo "error: $tool is not on PATH (see csrc/arm64.sh)" >&2; exit 2; }
done
read -r torch pybind11 include tag < <("$python" -c '
import os, pybind11, sysconfig, torch
print(os.path.dirname(torch.__file__), pybind11.get_include(), sysconfig.get_paths()["include"],
      sysconfig.get_config_var("SOABI").split("-")[1])')
flags=(-std=c++20 -O1 -g0 -fPIC -fvisibility=hidden -w -ffp-contract=off -pthread
       -include csrc/common/old_systems.h -Icsrc -isystem "$include")
torch_flags=(-isystem "$torch/include" -DTORCH_TARGET_VERSION=0x020b000000000000
             -DPy_LIMITED_API=0x030a0000)

kernels=$(find csrc/ops -name '*.cpp' ! -name cpu.cpp ! -name cuda.cpp ! -name emulator_test.cpp ! -name race.cpp)
bindings="csrc/library.cpp $(echo csrc/ops/*/cpu.cpp) csrc/common/check_index.cpp"
host="csrc/host/host.cpp"
races="csrc/tsan/race.cpp $(echo csrc/ops/*/race.cpp)"
shared="csrc/common/old_systems.cpp csrc/common/simd.cpp"
index="csrc/host/index.cpp csrc/host/lists.cpp"
object() { echo "$out/$(echo "${1%.cpp}" | tr / _).o"; }
objects() { for source in $1; do object "$source"; done; }

# Compiles the sources of the first argument that have changed since the last time, two at a time.
compile() {
  for source in $1; do
    target=$(object "$source")
    [[ -e $target && -z $(find csrc \( -name '*.h' -o -path "$source" \) -newer "$target") ]] && continue
    printf '%s\0%s\0' "$source" "$target"
  done | xargs -0 -r -n 2 -P "${JOBS:-2}" sh -c '"$0" '"$(printf '%q ' "${flags[@]}" "${@:2}")"' -c "$1" -o "$2"' $cxx
}
compile "$kernels $races $shared $index csrc/common/check_index.cpp"
compile "$bindings" "${torch_flags[@]}"
compile "$host" -isystem "$pybind11"

"$cxx" -pthread $(objects "$kernels $races $shared $index csrc/common/check_index.cpp") -o "$out/race"
mkdir -p "$out/stub" "$out/mmssl"
for name in torch_cpu c10; do  # the modules name these libraries and find them in torch
  $cxx -shared -x c++ /dev/null -Wl,-soname,lib$name.so -o "$out/stub/lib$name.so"
done
link=(-shared -pthread -Wl,--version-script=csrc/exports.map)
$cxx "${link[@]}" $(objects "$kernels $bindings $shared") -o "$out/mmssl/_C.abi3.so" \
  -L"$out/stub" -Wl,--no-as-needed -ltorch_cpu -lc10
$cxx "${link[@]}" $(objects "$host $index $shared") -o "$out/mmssl/_host.cpython-$tag-aarch64-linux-gnu.so"
"$python" -m tools.symbols "$out"/mmssl/*.so
qemu-aarch64 -L /usr/aarch64-linux-gnu "$out/race"
echo "arm64: _C and _host compiled and linked, kernels run under qemu"
