// Binds add_normalized to its CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/add_normalized/kernels.cuh"
#include "ops/add_normalized/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const NormalizedOperands& o) : device_(o.x) {}

  template <class T, class A>
  void forward(const NormalizedSize& size, const T* base, const T* x, A weight, T* out,
               A* inverse) const {
    MMSSL_CUDA_CHECK(
        cuda::launch_add_normalized(size, base, x, weight, out, inverse, device_.stream));
  }

  template <class T, class A>
  void backward(const NormalizedSize& size, const T* grad, const T* x, const A* inverse, A weight,
                T* grad_x) const {
    MMSSL_CUDA_CHECK(cuda::launch_add_normalized_backward(size, grad, x, inverse, weight, grad_x,
                                                          device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
};

struct OffsetOperands {
  OffsetOperands(const Tensor& x_, const OptTensor& offset_)
      : x(as_contiguous(x_)), offset(as_contiguous(offset_)), type(x.scalar_type()), device(x) {
    STD_TORCH_CHECK(x.dim() == 2 && (type == ScalarType::Float || type == ScalarType::Double) &&
                        matches(offset, x, type, {x.size(0)}),
                    "mmssl::offset_rows: x must be (N, D) float32 or float64, offset (N,) of its "
                    "dtype, on one device");
  }
  template <class A>
  cuda::OffsetArgs<A> args(double radius) const {
    return {x.size(0), x.size(1), data<A>(x), data<A>(offset), radius};
  }
  Tensor x;
  OptTensor offset;
  ScalarType type;
  cuda::CurrentDevice device;
};

Tensor offset_rows(const Tensor& x, const OptTensor& offset, double radius) {
  const OffsetOperands o(x, offset);
  const Tensor out = new_empty(o.x, {o.x.size(0), o.x.size(1) + 1});
  for_dtype(o.type, [&](auto, auto sum) {
    using A = decltype(sum);
    MMSSL_CUDA_CHECK(
        cuda::launch_offset_rows<A>(o.args<A>(radius), mutable_data<A>(out), o.device.stream));
  });
  return out;
}

Tensor offset_rows_backward(const Tensor& grad_, const Tensor& x, const OptTensor& offset,
                            double radius) {
  const OffsetOperands o(x, offset);
  STD_TORCH_CHECK(matches(grad_, o.x, o.type, {o.x.size(0), o.x.size(1) + 1}),
                  "mmssl::offset_rows: grad must be (N, D + 1) of the dtype and on the device of x");
  const Tensor grad = as_contiguous(grad_), grad_x = empty_like(o.x);
  for_dtype(o.type, [&](auto, auto sum) {
    using A = decltype(sum);
    MMSSL_CUDA_CHECK(cuda::launch_offset_rows_backward<A>(
        o.args<A>(radius), data<A>(grad), mutable_data<A>(grad_x), o.device.stream));
  });
  return grad_x;
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("add_normalized", TORCH_BOX(&add_normalized<Kernels>));
  m.impl("add_normalized_backward", TORCH_BOX(&add_normalized_backward<Kernels>));
  m.impl("offset_rows", TORCH_BOX(&offset_rows));
  m.impl("offset_rows_backward", TORCH_BOX(&offset_rows_backward));
}
