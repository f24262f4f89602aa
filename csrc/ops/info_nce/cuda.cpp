// Binds info_nce to its CUDA kernels.
#include <tuple>

#include "common/cuda_binding.h"
#include "ops/info_nce/kernels.cuh"
#include "ops/info_nce/operands.h"

namespace {

using namespace mmssl;

cuda::InfoNceShape shape_of(const InfoNceOperands& o, const cuda::CurrentDevice& device,
                            bool in_batch, bool intra_view, double eps, bool tf32) {
  STD_TORCH_CHECK(in_batch && !o.target.has_value(),
                  "mmssl::info_nce: target and in_batch=False have no CUDA kernel");
  return {o.pairs,    o.n,
          o.k,        o.d,
          intra_view, o.directions == 2,
          eps,        tf32 ? cuda::Precision::kTf32 : cuda::Precision::kFull,
          device.processors()};
}

std::tuple<Tensor, Tensor> info_nce(const Tensor& anchor, const Tensor& positive,
                                    const Tensor& temperature, const OptTensor& negatives,
                                    bool intra_view, bool symmetric, double eps, bool tf32,
                                    const OptTensor& target, bool in_batch) {
  const InfoNceOperands o(anchor, positive, temperature, negatives, target, symmetric);
  const cuda::CurrentDevice device(o.anchor);
  const cuda::InfoNceShape shape = shape_of(o, device, in_batch, intra_view, eps, tf32);
  Tensor loss = o.new_loss(), saved = o.new_saved();
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const Tensor scratch =
        cuda::new_scratch(o.anchor, cuda::info_nce_scratch<T, A>(shape, false));
    MMSSL_CUDA_CHECK((cuda::launch_info_nce<T, A>(
        shape, data<T>(o.anchor), data<T>(o.positive), data<T>(o.negatives),
        data<A>(o.temperature), mutable_data<A>(loss), mutable_data<double>(saved),
        scratch.mutable_data_ptr(), device.stream)));
  });
  return {loss, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& grad, const Tensor& anchor, const Tensor& positive, const Tensor& temperature,
    const OptTensor& negatives, const Tensor& saved, bool intra_view, bool symmetric, double eps,
    bool tf32, const OptTensor& target, bool in_batch) {
  const InfoNceGradOperands o(grad, anchor, positive, temperature, negatives, saved, target,
                              symmetric);
  const cuda::CurrentDevice device(o.anchor);
  const cuda::InfoNceShape shape = shape_of(o, device, in_batch, intra_view, eps, tf32);
  for_dtype(o.type, [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const Tensor scratch = cuda::new_scratch(o.anchor, cuda::info_nce_scratch<T, A>(shape, true));
    MMSSL_CUDA_CHECK((cuda::launch_info_nce_backward<T, A>(
        shape, data<T>(o.anchor), data<T>(o.positive), data<T>(o.negatives),
        data<A>(o.temperature), data<double>(o.saved), data<A>(o.grad),
        mutable_data<T>(o.grad_anchor), mutable_data<T>(o.grad_positive),
        mutable_data<T>(o.grad_negatives), mutable_data<A>(o.grad_temperature),
        scratch.mutable_data_ptr(), device.stream)));
  });
  return {o.grad_anchor, o.grad_positive, o.grad_temperature, o.grad_negatives};
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("info_nce", TORCH_BOX(&info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward));
}
