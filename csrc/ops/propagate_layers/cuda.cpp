// Binds propagate_layers to the CUDA kernels of propagate.
#include "common/cuda_binding.h"
#include "ops/propagate_layers/kernels.cuh"
#include "ops/propagate_layers/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const LayersOperands& o)
      : device_(o.user), sums_(new_empty(o.user, {cuda::hop_scratch(o.layers<float>())})) {}

  static int64_t scratch(const Layers<float>& m) { return m.scratch(); }

  // The sums are those of the hop before, which has ended: they follow each other on the stream.
  template <class A>
  void operator()(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch) const {
    run_layers(m, x, out, scratch, [&](auto products) {
      MMSSL_CUDA_CHECK(cuda::launch_spmm(products, mutable_data<A>(sums_), device_.stream));
    });
  }

 private:
  cuda::CurrentDevice device_;
  Tensor sums_;
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) { m.impl("propagate_layers", TORCH_BOX(&propagate_layers<Kernels>)); }
