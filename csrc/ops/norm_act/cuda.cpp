// Binds norm_act and its two gradients to the CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/norm_act/kernels.cuh"
#include "ops/norm_act/operands.h"

namespace {

using namespace mmssl;

struct Kernels : cuda::Launch {
  explicit Kernels(const NormActOperands& o)
      : Launch(o.x, cuda::norm_act_scratch(o.x.size(0) / o.groups, o.x.size(1), o.groups) * sizeof(double)) {}

  template <class T, class A>
  void forward(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y, A* mean,
               A* rstd) const {
    MMSSL_CUDA_CHECK(
        cuda::launch_norm_act(a, x, bias, eps, y, mean, rstd, scratch<double>(), device.stream));
  }

  template <class T, class A>
  void backward(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean, const A* rstd,
                T* grad_x, A* grad_weight, A* grad_bias) const {
    MMSSL_CUDA_CHECK(cuda::launch_norm_act_backward(a, grad_y, x, mean, rstd, grad_x, grad_weight,
                                                    grad_bias, scratch<double>(), device.stream));
  }

  template <class T, class A>
  void double_backward(const NormActArgs<A>& a, const T* up_x, const A* up_weight,
                       const A* up_bias, const T* grad_y, const T* x, const A* mean, const A* rstd,
                       T* out_grad_y, T* out_x, A* out_weight) const {
    MMSSL_CUDA_CHECK(cuda::launch_norm_act_double_backward(a, up_x, up_weight, up_bias, grad_y, x,
                                                           mean, rstd, out_grad_y, out_x,
                                                           out_weight, scratch<double>(), device.stream));
  }
};

// A vector of a model that is updated in place; its pointer is that of its memory.
void check_in_place(const NormActOperands& o, const Tensor& t) {
  STD_TORCH_CHECK(matches(t, o.x, o.accumulation, {o.x.size(1)}) && t.is_contiguous(),
                  "mmssl::norm_act_moved: running statistics must be (H,) of the type sums are kept "
                  "in, contiguous, on the device of x");
}

// The forward, which also moves running statistics.
struct Moving : Kernels {
  Moving(const NormActOperands& o, const Tensor& mean, const Tensor& var, const OptTensor& count,
         double momentum)
      : Kernels(o), mean(mean), var(var), count(count), momentum(momentum) {
    check_in_place(o, mean), check_in_place(o, var);
    STD_TORCH_CHECK(!count || (count->numel() == 1 && count->scalar_type() == ScalarType::Long &&
                               on_device_of(o.x, *count)),
                    "mmssl::norm_act_moved: count must be one int64 on the device of x");
  }

  template <class T, class A>
  void forward(const NormActArgs<A>& a, const T* x, const A* bias, A eps, T* y, A* to_mean,
               A* to_rstd) const {
    const cuda::Running<A> running{mutable_data<A>(mean), mutable_data<A>(var),
                                   count ? mutable_data<int64_t>(*count) : nullptr, momentum};
    MMSSL_CUDA_CHECK(cuda::launch_norm_act(a, x, bias, eps, y, to_mean, to_rstd, scratch<double>(),
                                           device.stream, running));
  }

  Tensor mean, var;
  OptTensor count;
  double momentum;
};

std::tuple<Tensor, Tensor, Tensor> norm_act_moved(const Tensor& x, const Tensor& weight,
                                                  const Tensor& bias, const OptTensor& keep,
                                                  double keep_scale, double slope, double eps,
                                                  int64_t groups, const Tensor& running_mean,
                                                  const Tensor& running_var, const OptTensor& count,
                                                  double momentum) {
  const NormActOperands o(x, weight, keep, groups);
  const Moving kernels(o, running_mean, running_var, count, momentum);
  return forward(o, bias, keep_scale, slope, eps, kernels);
}

// The backward, with more added.
struct Adding : Kernels {
  Adding(const NormActGradOperands& o, const OptTensor& more_x_, const OptTensor& more_weight_)
      : Kernels(o),
        more_x(as_contiguous(more_x_)),
        more_weight(o.vector(more_weight_, "more_weight")),
        sum_x(o.new_vector()) {
    STD_TORCH_CHECK(matches(more_x, o.x, o.type, {o.x.size(0) / o.groups, o.x.size(1)}),
                    "mmssl::norm_act_backward_added: more_x must be the rows of a group, of the dtype "
                    "and on the device of x");
  }

  template <class T, class A>
  void backward(const NormActArgs<A>& a, const T* grad_y, const T* x, const A* mean, const A* rstd,
                T* grad_x, A* grad_weight, A* grad_bias) const {
    MMSSL_CUDA_CHECK(cuda::launch_norm_act_added(
        a, grad_y, x, mean, rstd, data<T>(more_x), data<A>(more_weight), grad_x, grad_weight,
        grad_bias, mutable_data<A>(sum_x), scratch<double>(), device.stream));
  }

  OptTensor more_x, more_weight;
  Tensor sum_x;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_backward_added(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Tensor& mean,
    const Tensor& rstd, const OptTensor& keep, double keep_scale, double slope, int64_t groups,
    const OptTensor& more_x, const OptTensor& more_weight) {
  const NormActGradOperands o(grad_y, x, weight, mean, rstd, keep, groups);
  const Adding kernels(o, more_x, more_weight);
  const auto [grad_x, grad_weight, grad_bias] = backward(o, keep_scale, slope, kernels);
  return {grad_x, grad_weight, grad_bias, kernels.sum_x};
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("norm_act", TORCH_BOX(&norm_act<Kernels>));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward<Kernels>));
  m.impl("norm_act_double_backward", TORCH_BOX(&norm_act_double_backward<Kernels>));
  m.impl("norm_act_moved", TORCH_BOX(&norm_act_moved));
  m.impl("norm_act_backward_added", TORCH_BOX(&norm_act_backward_added));
}
