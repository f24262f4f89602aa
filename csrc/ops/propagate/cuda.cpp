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

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("spmm", TORCH_BOX(&spmm<Products>));
  m.impl("spmm_value_grad", TORCH_BOX(&spmm_value_grad<ValueGrad>));
  m.impl("propagate", TORCH_BOX(&propagate<Products>));
}
