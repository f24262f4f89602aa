// Schemas of the dense helpers and their binding to the CPU kernels: csrc/cpu/products.h. They are
// the inside of autograd functions in Python and have no gradient of their own.
#include "common/stable_args.h"
#include "common/torch_threads.h"
#include "cpu/products.h"

namespace {

using mmssl::data;
using mmssl::mutable_data;
using mmssl::ScalarType;
using mmssl::Tensor;
namespace stable = torch::stable;

void check_matrix(const Tensor& x, const char* what) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(x.dim() == 2 && (type == ScalarType::Float || type == ScalarType::Double ||
                                   type == ScalarType::BFloat16),
                  "mmssl::", what, ": expected a matrix of float32, float64 or bfloat16");
}

Tensor tall_product(const Tensor& a_, const Tensor& b_) {
  check_matrix(a_, "tall_product");
  STD_TORCH_CHECK(b_.dim() == 2 && b_.size(0) == a_.size(0) &&
                      b_.scalar_type() == a_.scalar_type() &&
                      a_.scalar_type() != ScalarType::BFloat16,
                  "mmssl::tall_product: a and b must have the same rows, float32 or float64");
  const Tensor a = mmssl::as_contiguous(a_), b = mmssl::as_contiguous(b_);
  Tensor out = stable::new_empty(a, {a.size(1), b.size(1)});
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    mmssl::cpu::tall_product<A>(data<A>(a), a.size(1), data<A>(b), b.size(1), a.size(0),
                                mutable_data<A>(out), mmssl::torch_threads());
  };
  a.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return out;
}

Tensor gram(const Tensor& x_) {
  check_matrix(x_, "gram");
  const Tensor x = mmssl::as_contiguous(x_);
  Tensor out = stable::new_empty(x, {x.size(1), x.size(1)}, ScalarType::Double);
  mmssl::for_dtype(x.scalar_type(), [&](auto storage, auto) {
    using T = decltype(storage);
    mmssl::cpu::gram<T>(data<T>(x), x.size(1), x.size(0), mutable_data<double>(out),
                        mmssl::torch_threads());
  });
  return out;
}

Tensor transposed(const Tensor& x_) {
  check_matrix(x_, "transposed");
  const Tensor x = mmssl::as_contiguous(x_);
  Tensor out = stable::new_empty(x, {x.size(1), x.size(0)});
  mmssl::for_dtype(x.scalar_type(), [&](auto storage, auto) {
    mmssl::cpu::transpose(x.const_data_ptr(), x.size(0), x.size(1), sizeof(storage),
                          out.mutable_data_ptr(), mmssl::torch_threads());
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("tall_product(Tensor a, Tensor b) -> Tensor");
  m.def("gram(Tensor x) -> Tensor");
  m.def("transposed(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("tall_product", TORCH_BOX(&tall_product));
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("transposed", TORCH_BOX(&transposed));
}
