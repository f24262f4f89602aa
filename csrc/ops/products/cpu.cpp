// Schemas of the dense helpers and their binding to the CPU kernels. They are used inside autograd
// functions in Python and have no gradient of their own.
#include "ops/products/operands.h"
#include "ops/products/products.h"

namespace {

using namespace mmssl;

Tensor tall_product(const Tensor& a, const Tensor& b) {
  const TallProductOperands o(a, b);
  const int64_t q = o.other.size(1);
  Tensor out = new_empty(o.x, {o.p, q});
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    cpu::tall_product<A>(data<A>(o.x), o.p, data<A>(o.other), q, o.n, mutable_data<A>(out),
                         torch_threads());
  };
  o.type == ScalarType::Double ? run(double{}) : run(float{});
  return out;
}

Tensor gram(const Tensor& x) {
  const ProductOperands o(x, "gram");
  Tensor out = new_empty(o.x, {o.p, o.p}, ScalarType::Double);
  for_dtype(o.type, [&](auto storage, auto) {
    using T = decltype(storage);
    cpu::gram<T>(data<T>(o.x), o.p, o.n, mutable_data<double>(out), torch_threads());
  });
  return out;
}

Tensor transposed(const Tensor& x) {
  const ProductOperands o(x, "transposed");
  Tensor out = new_empty(o.x, {o.p, o.n});
  for_dtype(o.type, [&](auto storage, auto) {
    cpu::transpose(o.x.const_data_ptr(), o.n, o.p, sizeof(storage), out.mutable_data_ptr(),
                   torch_threads());
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
