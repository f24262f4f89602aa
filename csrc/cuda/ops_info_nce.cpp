// Binds info_nce to its CUDA kernels; mmssl._C holds the schemas. Compiled, not run on a GPU yet.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <tuple>

#include "common/info_nce_args.h"
#include "cuda/info_nce.cuh"

namespace {

using mmssl::InfoNceOperands;
using mmssl::OptTensor;
using mmssl::Tensor;
using mmssl::cuda::InfoNceShape;

struct Place {
  explicit Place(const Tensor& t) {
    const int32_t device = t.get_device_index();
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    stream = static_cast<cudaStream_t>(current);
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  }
  cudaStream_t stream;
  int processors = 1;
};

InfoNceShape shape_of(const InfoNceOperands& o, const Place& place, bool intra_view, double eps,
                      bool tf32) {
  using mmssl::cuda::Precision;
  return {o.pairs, o.n, o.k, o.d, intra_view, o.directions == 2,
          eps,     tf32 ? Precision::kTf32 : Precision::kFull,   place.processors};
}

Tensor scratch_of(const InfoNceOperands& o, int64_t bytes) {
  return torch::stable::new_empty(o.anchor, {bytes}, mmssl::ScalarType::Byte);
}

std::tuple<Tensor, Tensor> info_nce(const Tensor& anchor, const Tensor& positive,
                                    const Tensor& temperature, const OptTensor& negatives,
                                    bool intra_view, bool symmetric, double eps, bool tf32) {
  const torch::stable::accelerator::DeviceGuard guard(anchor.get_device_index());
  const Place place(anchor);
  const InfoNceOperands o(anchor, positive, temperature, negatives, symmetric);
  const InfoNceShape shape = shape_of(o, place, intra_view, eps, tf32);
  Tensor loss = o.new_loss(), saved = o.new_saved();
  mmssl::for_dtype(o.anchor.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    Tensor scratch = scratch_of(o, mmssl::cuda::info_nce_scratch<T, A>(shape, false));
    STD_CUDA_CHECK((mmssl::cuda::launch_info_nce<T, A>(
        shape, mmssl::data<T>(o.anchor), mmssl::data<T>(o.positive), o.negatives_data<T>(),
        mmssl::data<A>(o.temperature), mmssl::mutable_data<A>(loss),
        mmssl::mutable_data<double>(saved), scratch.mutable_data_ptr(), place.stream)));
  });
  return {loss, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& grad_, const Tensor& anchor, const Tensor& positive, const Tensor& temperature,
    const OptTensor& negatives, const Tensor& saved_, bool intra_view, bool symmetric, double eps,
    bool tf32) {
  const torch::stable::accelerator::DeviceGuard guard(anchor.get_device_index());
  const Place place(anchor);
  const InfoNceOperands o(anchor, positive, temperature, negatives, symmetric);
  const InfoNceShape shape = shape_of(o, place, intra_view, eps, tf32);
  const Tensor grad = mmssl::as_contiguous(grad_), saved = mmssl::as_contiguous(saved_);
  o.check_backward(grad, saved);
  Tensor grad_anchor = torch::stable::empty_like(o.anchor);
  Tensor grad_positive = torch::stable::empty_like(o.positive);
  Tensor grad_negatives = torch::stable::new_empty(o.anchor, {o.k, o.d});
  Tensor grad_temperature = torch::stable::new_empty(o.anchor, {1}, o.accumulation);
  mmssl::for_dtype(o.anchor.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    Tensor scratch = scratch_of(o, mmssl::cuda::info_nce_scratch<T, A>(shape, true));
    STD_CUDA_CHECK((mmssl::cuda::launch_info_nce_backward<T, A>(
        shape, mmssl::data<T>(o.anchor), mmssl::data<T>(o.positive), o.negatives_data<T>(),
        mmssl::data<A>(o.temperature), mmssl::data<double>(saved), mmssl::data<A>(grad),
        mmssl::mutable_data<T>(grad_anchor), mmssl::mutable_data<T>(grad_positive),
        mmssl::mutable_data<T>(grad_negatives), mmssl::mutable_data<A>(grad_temperature),
        scratch.mutable_data_ptr(), place.stream)));
  });
  return {grad_anchor, grad_positive, grad_negatives, grad_temperature};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmssl, CUDA, m) {
  m.impl("info_nce", TORCH_BOX(&info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward));
}
