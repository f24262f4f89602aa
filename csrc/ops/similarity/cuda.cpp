// Checks and unpacks the tensors of the operators on similarity rows, and binds them to their CUDA
// kernels. Shapes: similarity.h.
#include <tuple>
#include <vector>

#include "common/cuda_binding.h"
#include "ops/similarity/kernels.cuh"

namespace {

using namespace mmssl;

void for_float_or_double(ScalarType type, const auto& f) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "mmssl::similarity_factors: expected float32 or float64");
  type == ScalarType::Float ? f(float{}) : f(double{});
}

struct Edges {
  Edges(const Tensor& x, const Tensor& rowptr_, const Tensor& col_)
      : rowptr(as_contiguous(rowptr_)), col(as_contiguous(col_)) {
    STD_TORCH_CHECK(matches(rowptr, x, ScalarType::Long, {kAny}) && rowptr.size(0) >= 1 &&
                        matches(col, x, ScalarType::Int, {kAny}),
                    "mmssl::similarity_factors: rowptr must be (B + 1,) int64 and col (n,) int32, "
                    "on one device with the rows");
  }
  BatchRows args() const { return {rows(), count(), data<int64_t>(rowptr), data<int32_t>(col)}; }
  int64_t rows() const { return rowptr.size(0) - 1; }
  int64_t count() const { return col.size(0); }
  Tensor rowptr, col;
};

struct Operands {
  Operands(const Tensor& user_, const Tensor& item_, const Tensor& through_, const Tensor& rowptr,
           const Tensor& col)
      : user(as_contiguous(user_)),
        item(item_.dim() == 3 && item_.stride(2) == 1 ? item_ : as_contiguous(item_)),
        through(as_contiguous(through_)),
        edges(user, rowptr, col) {
    STD_TORCH_CHECK(user.dim() == 3 && user.size(1) == edges.rows() &&
                        matches(item, user, user.scalar_type(), {user.size(0), kAny, user.size(2)}) &&
                        matches(through, user, ScalarType::Double,
                                {user.size(0), user.size(1), user.size(2)}),
                    "mmssl::similarity_factors: user must be (K, B, D), item (K, I, D) of its dtype "
                    "and through (K, B, D) float64, on one device");
  }
  Tensor like_rows(const Tensor& t, const char* what) const {
    STD_TORCH_CHECK(matches(t, user, user.scalar_type(), {user.size(0), user.size(1), user.size(2)}),
                    "mmssl::similarity_factors: ", what, " must be (K, B, D) of the dtype of user");
    return as_contiguous(t);
  }
  Tensor like(const Tensor& t, int64_t columns, const char* what) const {
    STD_TORCH_CHECK(matches(t, user, user.scalar_type(), {user.size(0), columns}),
                    "mmssl::similarity_factors: ", what, " must be (K, ", columns,
                    ") of the dtype of user");
    return as_contiguous(t);
  }
  Tensor new_of_edges() const { return new_empty(user, {user.size(0), edges.count()}); }
  template <class T>
  SimilarityArgs<T> args() const {
    return {edges.args(),   user.size(0),   user.size(2),   data<T>(user),
            data<T>(item), item.stride(0), item.stride(1), data<double>(through)};
  }
  Tensor user, item, through;
  Edges edges;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_factors(const Tensor& user,
                                                              const Tensor& item,
                                                              const Tensor& through,
                                                              const Tensor& rowptr,
                                                              const Tensor& col) {
  const Operands o(user, item, through, rowptr, col);
  const cuda::CurrentDevice device(o.user);
  const Tensor left = empty_like(o.user), value = o.new_of_edges(), masked = o.new_of_edges();
  const Tensor scale = new_empty(o.user, {o.user.size(0), o.user.size(1)});
  for_float_or_double(o.user.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const SimilarityFactors<T> out{mutable_data<T>(left), mutable_data<T>(value),
                                   mutable_data<T>(masked), mutable_data<T>(scale)};
    MMSSL_CUDA_CHECK(cuda::launch_similarity_factors(o.args<T>(), out, device.stream));
  });
  return {left, value, masked, scale};
}

std::tuple<Tensor, Tensor, Tensor> similarity_factors_backward(
    const Tensor& to_left_, const Tensor& to_value_, const Tensor& user, const Tensor& item,
    const Tensor& through, const Tensor& masked_, const Tensor& scale_, const Tensor& rowptr,
    const Tensor& col) {
  const Operands o(user, item, through, rowptr, col);
  const cuda::CurrentDevice device(o.user);
  const Tensor to_left = o.like_rows(to_left_, "to_left");
  const Tensor to_value = o.like(to_value_, o.edges.count(), "to_value");
  const Tensor masked = o.like(masked_, o.edges.count(), "masked");
  const Tensor scale = o.like(scale_, o.edges.rows(), "scale");
  const Tensor to_user = empty_like(o.user), weighted = empty_like(o.user);
  const Tensor to_masked = o.new_of_edges();
  for_float_or_double(o.user.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const SimilarityGradient<T> g{data<T>(to_left),         data<T>(to_value),
                                  data<T>(masked),          data<T>(scale),
                                  mutable_data<T>(to_user), mutable_data<T>(to_masked),
                                  mutable_data<T>(weighted)};
    MMSSL_CUDA_CHECK(cuda::launch_similarity_factors_backward(o.args<T>(), g, device.stream));
  });
  return {to_user, to_masked, weighted};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_tables(const std::vector<Tensor>& user_,
                                                             const std::vector<Tensor>& item_,
                                                             const Tensor& users_) {
  using Most = SimilarityTables<float>;
  const int64_t blocks = int64_t(user_.size());
  STD_TORCH_CHECK(blocks >= 1 && blocks <= Most::kMost && item_.size() == user_.size() &&
                      user_[0].dim() == 2 && item_[0].dim() == 2,
                  "mmssl::similarity_tables: expected one to 8 pairs of tables");
  const Tensor users = as_contiguous(users_);
  const ScalarType type = user_[0].scalar_type();
  const int64_t rows = users.numel(), d = user_[0].size(1), items = item_[0].size(0);
  std::vector<Tensor> user, item;
  for (int64_t n = 0; n < blocks; ++n) {
    STD_TORCH_CHECK(matches(user_[n], user_[0], type, {kAny, d}) &&
                        matches(item_[n], user_[0], type, {items, d}) &&
                        matches(users, user_[0], ScalarType::Long, {kAny}),
                    "mmssl::similarity_tables: tables must be (U, D) and (I, D) of one dtype, users "
                    "(B,) int64, on one device");
    user.push_back(user_[n].stride(1) == 1 ? user_[n] : as_contiguous(user_[n]));
    item.push_back(item_[n].stride(1) == 1 ? item_[n] : as_contiguous(item_[n]));
  }
  const cuda::CurrentDevice device(user[0]);
  const Tensor out_user = new_empty(user[0], {blocks, rows, d});
  const Tensor out_item = new_empty(user[0], {items, blocks, d});
  const Tensor wide_user = new_empty(user[0], {blocks, rows, d}, ScalarType::Double);
  const Tensor wide_item = new_empty(user[0], {blocks, items, d}, ScalarType::Double);
  for_float_or_double(type, [&](auto zero) {
    using T = decltype(zero);
    SimilarityTables<T> a{};
    a.blocks = blocks, a.rows = rows, a.items = items, a.d = d, a.users = data<int64_t>(users);
    for (int64_t n = 0; n < blocks; ++n) {
      a.user[n] = data<T>(user[n]), a.user_step[n] = user[n].stride(0);
      a.item[n] = data<T>(item[n]), a.item_step[n] = item[n].stride(0);
    }
    a.out_user = mutable_data<T>(out_user), a.out_item = mutable_data<T>(out_item);
    a.wide_user = mutable_data<double>(wide_user), a.wide_item = mutable_data<double>(wide_item);
    MMSSL_CUDA_CHECK(cuda::launch_similarity_tables(a, device.stream));
  });
  return {out_user, wide_user, out_item, wide_item};
}

void gumbel_rows(const Tensor& uniform_, const Tensor& left, const Tensor& value,
                 const Tensor& rowptr, const Tensor& col, double tau, double noise, double zeta) {
  const Edges edges(left, rowptr, col);
  const ScalarType type = left.scalar_type();
  STD_TORCH_CHECK(matches(left, left, type, {edges.rows(), kAny}) && left.is_contiguous() &&
                      matches(value, left, type, {edges.count()}) && value.is_contiguous() &&
                      matches(uniform_, left, type, {edges.count()}),
                  "mmssl::gumbel_rows: left must be (B, D), value and uniform (n,) of its dtype, on one "
                  "device, and what is overwritten contiguous");
  const Tensor uniform = as_contiguous(uniform_);
  const cuda::CurrentDevice device(left);
  for_float_or_double(type, [&](auto zero) {
    using T = decltype(zero);
    const RealRowArgs<T> a{edges.args(),          left.size(1), data<T>(uniform), mutable_data<T>(left),
                           mutable_data<T>(value), T(tau),       T(noise),         T(zeta)};
    MMSSL_CUDA_CHECK(cuda::launch_gumbel_rows(a, device.stream));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> stack_edges(
    const Tensor& rowptr, const Tensor& col, const Tensor& t_rowptr_, const Tensor& t_col_,
    const Tensor& t_edge_, int64_t blocks) {
  const Edges edges(rowptr, rowptr, col);
  const Tensor t_rowptr = as_contiguous(t_rowptr_), t_col = as_contiguous(t_col_);
  const Tensor t_edge = as_contiguous(t_edge_);
  STD_TORCH_CHECK(blocks >= 1 && matches(t_rowptr, rowptr, ScalarType::Long, {kAny}) &&
                      t_rowptr.size(0) >= 1 &&
                      matches(t_col, rowptr, ScalarType::Int, {edges.count()}) &&
                      matches(t_edge, rowptr, ScalarType::Long, {edges.count()}),
                  "mmssl::stack_edges: t_rowptr must be (C + 1,) int64, t_col (n,) int32 and t_edge "
                  "(n,) int64, on one device");
  const cuda::CurrentDevice device(edges.rowptr);
  const int64_t columns = t_rowptr.size(0) - 1, count = blocks * edges.count();
  const Tensor out_rowptr = new_empty(edges.rowptr, {blocks * edges.rows() + 1});
  const Tensor out_t_rowptr = empty_like(t_rowptr);
  const Tensor out_col = new_empty(edges.col, {count}), out_t_col = new_empty(edges.col, {count});
  const Tensor out_edge = new_empty(t_edge, {count}), out_t_edge = new_empty(t_edge, {count});
  MMSSL_CUDA_CHECK(cuda::launch_stack_edges(
      {edges.args(), blocks, columns, data<int64_t>(t_rowptr), data<int32_t>(t_col),
       data<int64_t>(t_edge), mutable_data<int64_t>(out_rowptr),
       mutable_data<int64_t>(out_t_rowptr), mutable_data<int32_t>(out_col),
       mutable_data<int32_t>(out_t_col), mutable_data<int64_t>(out_edge),
       mutable_data<int64_t>(out_t_edge)},
      device.stream));
  return {out_rowptr, out_col, out_t_rowptr, out_t_col, out_edge, out_t_edge};
}

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("similarity_tables", TORCH_BOX(&similarity_tables));
  m.impl("similarity_factors", TORCH_BOX(&similarity_factors));
  m.impl("similarity_factors_backward", TORCH_BOX(&similarity_factors_backward));
  m.impl("gumbel_rows", TORCH_BOX(&gumbel_rows));
  m.impl("stack_edges", TORCH_BOX(&stack_edges));
}
