#!/usr/bin/env bash
# Checks the CUDA part on a machine with nvcc, without a GPU and with any torch:
#   1. every .cu compiles for sm_80 and sm_90, *_sm90a.cu for sm_90a; a warning, a register spill or wgmma
#      that runs one by one is an error;
#   2. the bindings compile and link, against an empty stand-in for libtorch_cuda;
#   3. the module imports only the C interface of torch, so that one build serves every torch, and
#      nothing that a system of manylinux_2_28 lacks (tools/symbols.py).
# Usage: csrc/check_cuda.sh [output directory]      PYTHON, CUDA_HOME and CXX are honored.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/check_cuda}
python=${PYTHON:-python3}
cxx=${CXX:-g++}
cuda=${CUDA_HOME:-/usr/local/cuda}
[ -x "$cuda/bin/nvcc" ] || { echo "error: no nvcc in $cuda/bin (set CUDA_HOME)" >&2; exit 1; }
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
mkdir -p "$out/stub"
rm -f "$out"/*.o

name_of() { echo "$1" | sed 's|^csrc/||; s|[.][a-z]*$||' | tr / _; }

for source in csrc/ops/*/*.cu; do
  case $source in *_sm90a.cu) architectures=90a ;; *) architectures="80 90" ;; esac
  for arch in $architectures; do
    object=$out/$(name_of "$source").$arch.o
    "$cuda/bin/nvcc" -gencode=arch=compute_$arch,code=sm_$arch -O3 -std=c++20 -lineinfo -Icsrc \
      -Werror all-warnings -Xptxas -warn-spills,-Werror -Xcompiler -fPIC -c "$source" -o "$object" \
      2>"$out/messages" || { cat "$out/messages" >&2; exit 1; }
    if grep -q "wgmma.mma_async instructions are serialized" "$out/messages"; then # only a remark
      cat "$out/messages" >&2
      exit 1
    fi
  done
done

for source in csrc/common/old_systems.cpp csrc/library_cuda.cpp csrc/ops/*/cuda.cpp; do
  "$cxx" -std=c++20 -O2 -fPIC -Wall -Werror -fvisibility=hidden -DUSE_CUDA \
    -include csrc/common/old_systems.h -DTORCH_TARGET_VERSION=0x020b000000000000 -DPy_LIMITED_API=0x030a0000 -Icsrc \
    -isystem "$torch/include" -isystem "$include" -isystem "$cuda/include" \
    -c "$source" -o "$out/$(name_of "$source").binding.o"
done
"$cxx" -shared -x c++ /dev/null -Wl,-soname,libtorch_cuda.so -o "$out/stub/libtorch_cuda.so"
"$cxx" -shared -Wl,--version-script=csrc/exports.map "$out"/*.binding.o "$out"/*.90*.o -o "$out/_C_cuda.abi3.so" \
  -L"$out/stub" -L"$cuda/lib64" -L"$torch/lib" -Wl,--no-as-needed \
  -ltorch_cuda -lcudart -lc10 -ltorch_cpu

"$python" -m tools.symbols "$out/_C_cuda.abi3.so"
symbols=$(nm -D "$out/_C_cuda.abi3.so")  # no pipe: grep -q would close it early
grep -q ' U aoti_torch_get_current_cuda_stream' <<<"$symbols"
grep -q ' T PyInit__C_cuda' <<<"$symbols"
echo "check_cuda: compiled and linked for sm_80, sm_90 and sm_90a (not run)"
