// Binds spmm, its value gradient and propagate to their CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/propagate/kernels.cuh"
#include "ops/propagate/operands.h"

namespace {

using namespace mmssl;

class Products {
 public:
  explicit Products(const PropagateOperands& o) : device_(o.x[0]), scratch_(new_scratch(o)) {}

  template <class T, class A>
  void operator()(std::span<const SparseProduct<T, A>> products) const {
    MMSSL_CUDA_CHECK(cuda::launch_spmm(products, mutable_data<A>(scratch_), device_.stream));
  }

 private:
  static Tensor new_scratch(const PropagateOperands& o) {
    int64_t sums = 0;
    for (size_t n = 0; n < o.x.size(); ++n) {
      sums += cuda::spmm_scratch_rows(o.matrix[n].nnz()) * o.x[n].size(1);
    }
    return new_empty(o.x[0], {sums}, accumulation_type(o.x[0].scalar_type()));
  }

  cuda::CurrentDevice device_;
  Tensor scratch_;
};

class ValueGrad {
 public:
  explicit ValueGrad(const ValueGradOperands& o) : device_(o.x) {}

  template <class T, class A>
  void operator()(const SparseArgs<A>& a, const T* g, const T* x, A* out, int64_t d) const {
    MMSSL_CUDA_CHECK(cuda::launch_spmm_value_grad(a, g, x, out, d, device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
};

Tensor propagate_packed(const Tensors& x, const Tensors& rowptr, const Tensors& col,
                        const Tensors& t_rowptr, const Tensors&, const OptTensors& row_scale,
                        const OptTensors& col_scale, const OptTensors& value, const OptTensors& edge,
                        const OptTensors&) {
  STD_TORCH_CHECK(!x.empty(), "mmssl::propagate_packed: expected at least one product");
  const PropagateOperands o(x, rowptr, col, t_rowptr, row_scale, col_scale, value, edge, false);
  const int64_t d = o.x[0].size(1);
  int64_t rows = 0;
  for (size_t n = 0; n < o.x.size(); ++n) {
    STD_TORCH_CHECK(o.x[n].size(1) == d, "mmssl::propagate_packed: products must have one width");
    rows += o.matrix[n].rows();
  }
  const Tensor out = new_empty(o.x[0], {rows, d});
  const Products products(o);
  for_dtype(o.x[0].scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    std::vector<SparseProduct<T, A>> args;
    T* to = mutable_data<T>(out);
    for (size_t n = 0; n < o.x.size(); ++n) {
      args.push_back({o.matrix[n].args<A>(), data<T>(o.x[n]), to, d});
      to += o.matrix[n].rows() * d;
    }
    products(std::span<const SparseProduct<T, A>>(args));
  });
  return out;
}

Tensor spmm_added(const Tensor& x, const Tensor& rowptr, const Tensor& col, const Tensor& t_rowptr,
                  const Tensor&, const OptTensor& row_scale, const OptTensor& col_scale,
                  const OptTensor& value, const OptTensor& edge, const OptTensor&,
                  const Tensor& base_, double scale) {
  const PropagateOperands o({x}, {rowptr}, {col}, {t_rowptr}, {row_scale}, {col_scale}, {value},
                            {edge});
  STD_TORCH_CHECK(matches(base_, o.x[0], o.x[0].scalar_type(), {o.y[0].size(0), o.y[0].size(1)}),
                  "mmssl::spmm_added: base must be (R, D) of the dtype and on the device of x");
  const Tensor base = as_contiguous(base_);
  const Products products(o);
  for_dtype(o.x[0].scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    auto args = o.args<T, A>();
    args[0].epilogue.base = data<T>(base);
    args[0].epilogue.base_stride = base.size(1);
    args[0].epilogue.scale = A(scale);
    products(std::span<const SparseProduct<T, A>>(args));
  });
  return o.y[0];
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("propagate_packed", TORCH_BOX(&propagate_packed));
  m.impl("spmm_added", TORCH_BOX(&spmm_added));
  m.impl("spmm", TORCH_BOX(&spmm<Products>));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad<ValueGrad>));
  m.impl("propagate", TORCH_BOX(&propagate<Products>));
}
