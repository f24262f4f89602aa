// mmssl._C: the schemas and the CPU kernels of the ops in ops/, on torch's stable ABI, so that one
// build serves every Python and every torch from 2.11 on. Fakes and autograd are written in Python.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/simd.h"

namespace {

std::string cpu_capability() { return mmssl::cpu::simd_level_name(); }

}  // namespace

STABLE_TORCH_LIBRARY(mmssl, m) { m.def("cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(mmssl, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr,               nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
