// Binds add_normalized to its CUDA kernels.
#include <tuple>
#include <vector>

#include "common/cuda_binding.h"
#include "ops/add_normalized/kernels.cuh"
#include "ops/add_normalized/operands.h"
#include "ops/add_normalized/tables.cuh"

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

// The tables of users and items; scratch and results hold the rows of both.
struct TableOperands {
  using Tensors = std::vector<Tensor>;

  explicit TableOperands(const Tensors& x_) : x(x_), type(ScalarType::Float) {
    STD_TORCH_CHECK(x.size() == 2, "mmssl::normalized_tables: expected two tables");
    type = x[0].scalar_type();
    for (Tensor& t : x) {
      STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && x[0].dim() == 3 &&
                          matches(t, x[0], type, {x[0].size(0), kAny, x[0].size(2)}),
                      "mmssl::normalized_tables: views must be (M, N, D) float32 or float64");
      if (t.size(2) != 1 && t.stride(2) != 1) t = as_contiguous(t);
    }
  }
  // (N, D) for each table, `of` at a time.
  void check(const Tensors& tensors, size_t of, const char* what) const {
    bool fits = tensors.size() == 2 * of;
    for (size_t n = 0; fits && n < tensors.size(); ++n) {
      fits = matches(tensors[n], x[0], type, {x[n / of].size(1), x[0].size(2)}) &&
             tensors[n].is_contiguous();
    }
    STD_TORCH_CHECK(fits, "mmssl::normalized_tables: ", what,
                    " must be (N, D) for each table, contiguous, of the dtype of its views");
  }
  int64_t rows() const { return x[0].size(1) + x[1].size(1); }
  template <class A>
  cuda::NormalizedTables<A> args(double scale, double weight, const Tensor& inverse) const {
    cuda::NormalizedTables<A> a{x[0].size(0), x[0].size(2), 0, A(scale), A(weight), {},
                                mutable_data<A>(inverse)};
    for (int n = 0; n < 2; ++n) {
      a.table[n].rows = x[n].size(1), a.table[n].x = data<A>(x[n]);
      a.table[n].view_step = x[n].stride(0), a.table[n].row_step = x[n].stride(1);
    }
    return a;
  }

  Tensors x;
  ScalarType type;
};

std::tuple<Tensor, Tensor> normalized_tables(const std::vector<Tensor>& layers,
                                                 const std::vector<Tensor>& x, double scale,
                                                 double weight) {
  const TableOperands o(x);
  const size_t count = layers.size() / 2;
  o.check(layers, count, "layers");
  STD_TORCH_CHECK(count >= 1 && count <= size_t(cuda::NormalizedTable<float>::kMostLayers),
                  "mmssl::normalized_tables: expected one to 8 layers per table");
  const cuda::CurrentDevice device(o.x[0]);
  const Tensor out = new_empty(o.x[0], {o.rows(), o.x[0].size(2)});
  const Tensor inverse = new_empty(o.x[0], {o.x[0].size(0), o.rows()});
  for_dtype(o.type, [&](auto, auto sum) {
    using A = decltype(sum);
    auto a = o.args<A>(scale, weight, inverse);
    a.layers = int(count);
    for (size_t n = 0; n < layers.size(); ++n) {
      a.table[n / count].layer[n % count] = data<A>(layers[n]);
    }
    MMSSL_CUDA_CHECK(
        cuda::launch_normalized_tables<A>(a, mutable_data<A>(out), device.stream));
  });
  return {out, inverse};
}

Tensor normalized_tables_backward(const std::vector<Tensor>& grad, const std::vector<Tensor>& x,
                                      const Tensor& inverse, std::vector<OptTensor> more,
                                      double weight) {
  const TableOperands o(x);
  o.check(grad, 1, "gradients");
  const int64_t views = o.x[0].size(0), d = o.x[0].size(2);
  bool fits = matches(inverse, o.x[0], o.type, {views, o.rows()}) && inverse.is_contiguous() &&
              more.size() <= 2 * size_t(cuda::NormalizedTable<float>::kMostAdded);
  for (size_t n = 0; fits && n < more.size(); ++n) {
    fits = matches(more[n], o.x[0], o.type, {views, o.x[n % 2].size(1), d});
    if (fits && more[n] && d != 1 && more[n]->stride(2) != 1) more[n] = as_contiguous(more[n]);
  }
  STD_TORCH_CHECK(fits, "mmssl::normalized_tables_backward: inverse must be (M, N), and what is "
                        "added like the views of each table");
  const cuda::CurrentDevice device(o.x[0]);
  const Tensor grad_x = new_empty(o.x[0], {o.rows(), views, d});
  for_dtype(o.type, [&](auto, auto sum) {
    using A = decltype(sum);
    auto a = o.args<A>(1, weight, inverse);
    for (int n = 0; n < 2; ++n) {
      a.table[n].grad = data<A>(grad[n]);
    }
    for (size_t n = 0; n < more.size(); ++n) {
      if (!more[n]) continue;
      auto& table = a.table[n % 2];
      table.more[n / 2] = data<A>(more[n]);
      table.more_view_step[n / 2] = more[n]->stride(0);
      table.more_row_step[n / 2] = more[n]->stride(1);
    }
    MMSSL_CUDA_CHECK(cuda::launch_normalized_tables_backward<A>(a, mutable_data<A>(grad_x),
                                                                    device.stream));
  });
  return grad_x;
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("normalized_tables", TORCH_BOX(&normalized_tables));
  m.impl("normalized_tables_backward", TORCH_BOX(&normalized_tables_backward));
  m.impl("add_normalized", TORCH_BOX(&add_normalized<Kernels>));
  m.impl("add_normalized_backward", TORCH_BOX(&add_normalized_backward<Kernels>));
  m.impl("offset_rows", TORCH_BOX(&offset_rows));
  m.impl("offset_rows_backward", TORCH_BOX(&offset_rows_backward));
}
