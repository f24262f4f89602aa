// Checks and unpacks the tensors of the operators of a critic's pass, and binds them to their CUDA
// kernels. Shapes: critic.h.
#include <tuple>

#include "common/cuda_binding.h"
#include "ops/critic/kernels.cuh"

namespace {

using namespace mmssl;

// (rows, columns) of a dtype that has kernels.
Tensor matrix(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.dim() == 2 && is_supported(t.scalar_type()), "mmssl::", what,
                  ": rows must be a matrix of float32, float64 or bfloat16");
  return as_contiguous(t);
}

// As many numbers per row, of the type sums are kept in.
Tensor numbers(const Tensor& t, const Tensor& like, int64_t count, const char* what) {
  STD_TORCH_CHECK(t.numel() == count && t.scalar_type() == accumulation_type(like.scalar_type()) &&
                      on_device_of(like, t),
                  "mmssl::", what, ": expected ", count,
                  " numbers of the type sums are kept in, on the device of the rows");
  return as_contiguous(t);
}
OptTensor numbers(const OptTensor& t, const Tensor& like, int64_t count, const char* what) {
  return t ? OptTensor(numbers(*t, like, count, what)) : t;
}

// Two results with a number per row.
std::tuple<Tensor, Tensor> two_per_row(const Tensor& rows) {
  const Tensor first = new_empty(rows, {rows.size(0)}, accumulation_type(rows.scalar_type()));
  return {first, empty_like(first)};
}

void check_groups(int64_t groups, const OptTensor& third, const char* what) {
  STD_TORCH_CHECK(groups >= 1 && groups <= 3 && third.has_value() == (groups == 3), "mmssl::", what,
                  ": expected one to three groups, and what the third needs only with it");
}

Tensor critic_rows(const Tensor& pre_, const Tensor& bias_, const OptTensor& alpha_, int64_t rows,
                   int64_t groups) {
  constexpr const char* kName = "critic_rows";
  const Tensor pre = matrix(pre_, kName), bias = numbers(bias_, pre, pre.size(1), kName);
  const OptTensor alpha = numbers(alpha_, pre, rows, kName);
  check_groups(groups, alpha, kName);
  const int64_t batch = pre.size(0) - rows;
  STD_TORCH_CHECK(rows >= 0 && (groups == 1 ? batch == 0 : batch > 0 && rows % batch == 0),
                  "mmssl::critic_rows: the fake rows must be a multiple of the real ones");
  const cuda::CurrentDevice device(pre);
  const Tensor out = new_empty(pre, {groups * rows, pre.size(1)});
  for_dtype(pre.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const GroupedRows<T, A> a{groups,        rows,           batch,          pre.size(1),
                              data<T>(pre), data<A>(bias), data<A>(alpha), mutable_data<T>(out)};
    MMSSL_CUDA_CHECK(cuda::launch_grouped_rows(a, device.stream));
  });
  return out;
}

Tensor critic_rows_backward(const Tensor& grad_, const OptTensor& alpha_, int64_t rows,
                            int64_t batch) {
  constexpr const char* kName = "critic_rows_backward";
  const Tensor grad = matrix(grad_, kName);
  const OptTensor alpha = numbers(alpha_, grad, rows, kName);
  const int64_t groups = rows > 0 ? grad.size(0) / rows : 2;
  check_groups(groups, alpha, kName);
  STD_TORCH_CHECK(groups >= 2 && grad.size(0) == groups * rows && batch > 0 && rows % batch == 0,
                  "mmssl::critic_rows_backward: expected two or three groups of a multiple of the "
                  "real rows");
  const cuda::CurrentDevice device(grad);
  const Tensor out = new_empty(grad, {rows + batch, grad.size(1)});
  for_dtype(grad.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const UngroupedRows<T, A> a{groups,         rows,           batch, grad.size(1),
                                data<T>(grad), data<A>(alpha), mutable_data<T>(out)};
    MMSSL_CUDA_CHECK(cuda::launch_ungrouped_rows(a, device.stream));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> critic_scores(const Tensor& y_, const Tensor& weight_,
                                                 const Tensor& bias_, int64_t last) {
  constexpr const char* kName = "critic_scores";
  const Tensor y = matrix(y_, kName), weight = numbers(weight_, y, y.size(1), kName);
  const Tensor bias = numbers(bias_, y, 1, kName);
  STD_TORCH_CHECK(last >= 0 && last <= y.size(0), "mmssl::critic_scores: there are fewer rows");
  const cuda::CurrentDevice device(y);
  const auto [share, slope] = two_per_row(y);
  const Tensor to_y = new_empty(y, {last, y.size(1)});
  for_dtype(y.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const Scores<T, A> a{y.size(0),       y.size(1),     last,
                         data<T>(y),      data<A>(weight), data<A>(bias),
                         mutable_data<A>(share), mutable_data<A>(slope), mutable_data<T>(to_y)};
    MMSSL_CUDA_CHECK(cuda::launch_scores(a, device.stream));
  });
  return {share, slope, to_y};
}

std::tuple<Tensor, Tensor> critic_norms(const Tensor& image_, const Tensor& other_) {
  const Tensor image = matrix(image_, "critic_norms"), other = as_contiguous(other_);
  const ScalarType type = image.scalar_type();
  STD_TORCH_CHECK(matches(other, image, type, {image.size(0), image.size(1)}),
                  "mmssl::critic_norms: both must have the same shape, dtype and device");
  const cuda::CurrentDevice device(image);
  const auto [norm, factor] = two_per_row(image);
  for_dtype(type, [&]<class T, class A>(T, A) {
    const RowNorms<T, A> a{image.size(0),  image.size(1),         data<T>(image),
                           data<T>(other), mutable_data<A>(norm), mutable_data<A>(factor)};
    MMSSL_CUDA_CHECK(cuda::launch_row_norms(a, device.stream));
  });
  return {norm, factor};
}

// Float32 or float64 numbers of G groups.
int64_t groups_of(const Tensor& share, int64_t rows, const char* what) {
  const ScalarType type = share.scalar_type();
  const int64_t groups = rows > 0 ? share.numel() / rows : 0;
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && groups >= 1 &&
                      groups <= 3 && share.numel() == groups * rows,
                  "mmssl::", what, ": expected one to three groups of rows, float32 or float64");
  return groups;
}

Tensor critic_terms(const Tensor& share_, const OptTensor& norm_, int64_t rows, double weight) {
  const Tensor share = as_contiguous(share_);
  const int64_t groups = groups_of(share, rows, "critic_terms");
  const OptTensor norm = numbers(norm_, share, rows, "critic_terms");
  const cuda::CurrentDevice device(share);
  const Tensor out = new_empty(share, {4});
  for_dtype(share.scalar_type(), [&](auto, auto sum) {
    using A = decltype(sum);
    const LossTerms<A> a{groups,    rows,           data<A>(share), data<A>(norm),
                         A(weight), mutable_data<A>(out)};
    MMSSL_CUDA_CHECK(cuda::launch_loss_terms(a, device.stream));
  });
  return out;
}

std::tuple<Tensor, Tensor> critic_scale(const Tensor& grad_, const Tensor& factor_,
                                        const Tensor& first_, const OptTensor& second_,
                                        double weight) {
  constexpr const char* kName = "critic_scale";
  const Tensor first = matrix(first_, kName), grad = numbers(grad_, first, 1, kName);
  const Tensor factor = numbers(factor_, first, first.size(0), kName);
  const OptTensor second = as_contiguous(second_);
  STD_TORCH_CHECK(matches(second, first, first.scalar_type(), {first.size(0), first.size(1)}),
                  "mmssl::critic_scale: both must have the same shape, dtype and device");
  const cuda::CurrentDevice device(first);
  const Tensor out_first = empty_like(first);
  const Tensor out_second = second ? empty_like(*second) : new_empty(first, {0, first.size(1)});
  for_dtype(first.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const ScaledRows<T, A> a{first.size(0),
                             first.size(1),
                             data<A>(grad),
                             data<A>(factor),
                             A(weight),
                             data<T>(first),
                             data<T>(second),
                             mutable_data<T>(out_first),
                             mutable_data<T>(out_second)};
    MMSSL_CUDA_CHECK(cuda::launch_scaled_rows(a, device.stream));
  });
  return {out_first, out_second};
}

// The rows that the mixed group's gradient comes from.
OptTensor rows_of_penalty(const OptTensor& up, const Tensor& y, int64_t rows, int64_t groups,
                          const char* what) {
  check_groups(groups, up, what);
  STD_TORCH_CHECK(matches(up, y, y.scalar_type(), {rows, y.size(1)}), "mmssl::", what,
                  ": up must be the rows of a group, of the dtype and on the device of the others");
  return as_contiguous(up);
}

// like: rows of the shape and dtype of the result, which are not read.
std::tuple<Tensor, Tensor> critic_logits_backward(const Tensor& grad_, const Tensor& share_,
                                                  const Tensor& slope_, const Tensor& like,
                                                  const OptTensor& up_, const Tensor& weight_,
                                                  int64_t rows) {
  constexpr const char* kName = "critic_logits_backward";
  const Tensor to_y = empty_like(matrix(like, kName));
  const Tensor share = numbers(share_, to_y, to_y.size(0), kName);
  const Tensor slope = numbers(slope_, to_y, to_y.size(0), kName);
  const int64_t groups = groups_of(share, rows, kName);
  const Tensor grad = numbers(grad_, to_y, 1, kName);
  const Tensor weight = numbers(weight_, to_y, to_y.size(1), kName);
  const OptTensor up = rows_of_penalty(up_, to_y, rows, groups, kName);
  const cuda::CurrentDevice device(share);
  const Tensor to_logit = empty_like(share);
  for_dtype(to_y.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const LogitGradient<T, A> a{groups,         rows,        to_y.size(1),
                                data<A>(grad),  data<A>(share), data<A>(slope),
                                data<T>(up),    data<A>(weight), mutable_data<A>(to_logit),
                                mutable_data<T>(to_y)};
    MMSSL_CUDA_CHECK(cuda::launch_logit_gradient(a, device.stream));
  });
  return {to_logit, to_y};
}

std::tuple<Tensor, Tensor> critic_last_backward(const Tensor& to_logit_, const Tensor& slope_,
                                                const Tensor& y_, const OptTensor& up_, int64_t rows) {
  constexpr const char* kName = "critic_last_backward";
  const Tensor y = matrix(y_, kName), to_logit = numbers(to_logit_, y, y.size(0), kName);
  const Tensor slope = numbers(slope_, y, y.size(0), kName);
  const int64_t groups = groups_of(slope, rows, kName);
  const OptTensor up = rows_of_penalty(up_, y, rows, groups, kName);
  const cuda::CurrentDevice device(y);
  const Tensor to_weight = new_empty(slope, {y.size(1)}), to_bias = new_empty(slope, {1});
  for_dtype(y.scalar_type(), [&](auto storage, auto sum) {
    using T = decltype(storage);
    using A = decltype(sum);
    const LastGradient<T, A> a{groups,
                               rows,
                               y.size(1),
                               data<A>(to_logit),
                               data<A>(slope),
                               data<T>(y),
                               data<T>(up),
                               mutable_data<A>(to_weight),
                               mutable_data<A>(to_bias)};
    MMSSL_CUDA_CHECK(cuda::launch_last_gradient(a, device.stream));
  });
  return {to_weight, to_bias};
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("critic_rows", TORCH_BOX(&critic_rows));
  m.impl("critic_rows_backward", TORCH_BOX(&critic_rows_backward));
  m.impl("critic_scores", TORCH_BOX(&critic_scores));
  m.impl("critic_norms", TORCH_BOX(&critic_norms));
  m.impl("critic_terms", TORCH_BOX(&critic_terms));
  m.impl("critic_scale", TORCH_BOX(&critic_scale));
  m.impl("critic_logits_backward", TORCH_BOX(&critic_logits_backward));
  m.impl("critic_last_backward", TORCH_BOX(&critic_last_backward));
}
