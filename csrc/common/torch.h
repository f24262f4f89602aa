// The part of torch's stable ABI that the bindings use. Python has checked everything that a user
// can get wrong; the operands of each op check again what would make a kernel read out of bounds.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "common/bf16.h"
#include "common/parallel.h"

namespace mmssl {

using torch::headeronly::ScalarType;
using torch::stable::empty_like;
using torch::stable::new_empty;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using OptTensors = std::vector<OptTensor>;

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
const T* data(const OptTensor& t) {  // null without a tensor
  return t.has_value() ? data<T>(*t) : nullptr;
}
template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// The tensor itself where it is contiguous already. Checked here, since torch's own op costs a trip
// through the dispatcher for every operand of every call.
inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}
inline OptTensor as_contiguous(const OptTensor& t) {
  return t.has_value() ? OptTensor(as_contiguous(*t)) : std::nullopt;
}

// Kernels take float32, float64 and bfloat16. They keep sums in float64 for float64, else in
// float32.
inline bool is_supported(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16;
}
inline ScalarType accumulation_type(ScalarType storage) {
  return storage == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f(storage value, sum value) with zeros of the two types that belong to a dtype.
template <class F>
void for_dtype(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::Double:
      return f(double{}, double{});
    default:
      return f(bf16{}, float{});
  }
}

// A kernel would follow the pointer of another device's memory.
inline bool on_device_of(const Tensor& x, const Tensor& t) {
  return x.is_cuda() == t.is_cuda() && x.is_cpu() == t.is_cpu() &&
         x.get_device_index() == t.get_device_index();
}

// Whether t has this dtype and these sizes (kAny: any size) and lies on the device of x. A missing
// tensor matches.
inline constexpr int64_t kAny = -1;
inline bool matches(const Tensor& t, const Tensor& x, ScalarType type,
                    std::initializer_list<int64_t> sizes) {
  if (t.scalar_type() != type || t.dim() != int64_t(sizes.size()) || !on_device_of(x, t)) {
    return false;
  }
  int64_t dim = 0;
  for (const int64_t size : sizes) {
    if (t.size(dim++) != size && size != kAny) return false;
  }
  return true;
}
inline bool matches(const OptTensor& t, const Tensor& x, ScalarType type,
                    std::initializer_list<int64_t> sizes) {
  return !t.has_value() || matches(*t, x, type, sizes);
}

// torch's thread pool, as the kernels ask for it.
inline Parallel torch_threads() {
  Parallel pool;
  pool.threads = static_cast<int>(torch::stable::get_num_threads());
  pool.run = [](int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
    torch::stable::parallel_for(0, count, 1,
                                [&](int64_t begin, int64_t end) { body(begin, end, context); });
  };
  return pool;
}

}  // namespace mmssl
