// Schemas of propagate_layers and of the ops that use some rows of its results, bound to the CPU
// kernels.
#include "ops/propagate_layers/batch.h"
#include "ops/propagate_layers/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const LayersOperands& o) : o_(o) { o.check_rowptr(); }
  static int64_t scratch(const Layers<float>& m) { return m.one_table(); }

  template <class A>
  void operator()(const Layers<A>& m, Sides<const A> x, Sides<A> out, A* scratch) const {
    if (!cpu::propagate_layers(m, x, out, scratch, torch_threads())) o_.report_bad_index();
  }

 private:
  const LayersOperands& o_;
};

// Ids of rows of both sides, (n,) and (m,).
class IdOperands {
 public:
  IdOperands(const LayersOperands& o, const Tensor& users, const Tensor& items)
      : users_(as_contiguous(users)), items_(as_contiguous(items)) {
    for (const Tensor* ids : {&users_, &items_}) {
      STD_TORCH_CHECK(matches(*ids, o.user, ScalarType::Long, {kAny}) &&
                          ids->numel() < int64_t(1) << 30,
                      "mmssl::propagated_rows: users and items must be (n,) int64 on the device of "
                      "user, with n < 2^30");
    }
    cpu::check_ids("users", data<int64_t>(users_), users_.numel(), o.ui.rows());
    cpu::check_ids("items", data<int64_t>(items_), items_.numel(), o.iu.rows());
  }
  Ids get() const {
    return {data<int64_t>(users_), users_.numel(), data<int64_t>(items_), items_.numel()};
  }

 private:
  Tensor users_, items_;
};

// The triples (B,) of a batch.
class BatchOperands {
 public:
  BatchOperands(const LayersOperands& o, const Tensor& users, const Tensor& pos, const Tensor& neg)
      : users_(as_contiguous(users)), pos_(as_contiguous(pos)), neg_(as_contiguous(neg)) {
    for (const Tensor* ids : {&users_, &pos_, &neg_}) {
      STD_TORCH_CHECK(matches(*ids, o.user, ScalarType::Long, {users_.numel()}),
                      "mmssl::propagated_bpr_loss: users, pos_items and neg_items must be (B,) "
                      "int64 on the device of user");
    }
    STD_TORCH_CHECK(users_.numel() < int64_t(1) << 30,
                    "mmssl::propagated_bpr_loss: at most 2^30 - 1 triples, got ", users_.numel());
    cpu::check_ids("users", data<int64_t>(users_), users_.numel(), o.ui.rows());
    cpu::check_ids("pos_items", data<int64_t>(pos_), pos_.numel(), o.iu.rows());
    cpu::check_ids("neg_items", data<int64_t>(neg_), neg_.numel(), o.iu.rows());
  }
  Triples get() const {
    return {data<int64_t>(users_), data<int64_t>(pos_), data<int64_t>(neg_), users_.numel()};
  }

 private:
  Tensor users_, pos_, neg_;
};

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors propagated_bpr_loss(
    const Tensor& user, const Tensor& item, const Tensor& users, const Tensor& pos_items,
    const Tensor& neg_items, const Tensor& rowptr, const Tensor& col, const Tensor& t_rowptr,
    const Tensor& t_col, const OptTensor& ui_row_scale, const OptTensor& ui_col_scale,
    const OptTensor& iu_row_scale, const OptTensor& iu_col_scale, const OptTensor& value,
    const OptTensor& t_edge, int64_t num_layers, double scale) {
  const LayersOperands o(user, item, rowptr, col, t_rowptr, t_col, ui_row_scale, ui_col_scale,
                         iu_row_scale, iu_col_scale, value, t_edge, num_layers, scale);
  o.check_rowptr();
  const BatchOperands ids(o, users, pos_items, neg_items);
  const Triples batch = ids.get();
  const Tensor loss = new_empty(o.user, {}), squares = new_empty(o.user, {});
  const Tensor slope = new_empty(o.user, {batch.count});
  const Tensor found_user = new_empty(o.user, {batch.count, o.width});
  const Tensor found_item = new_empty(o.user, {2 * batch.count, o.width});
  for_table_dtype(o.user, [&](auto number) {
    using A = decltype(number);
    const Sides<A> found{mutable_data<A>(found_user), mutable_data<A>(found_item), o.width};
    const bool good =
        cpu::propagated_bpr(o.layers<A>(), batch, o.sides<A>(), found, mutable_data<A>(loss),
                            mutable_data<A>(squares), mutable_data<A>(slope), torch_threads());
    if (!good) o.report_bad_index();
  });
  return {loss, squares, slope, found_user, found_item};
}

// The scales are those of the transposed graph.
std::tuple<Tensor, Tensor> propagated_bpr_loss_backward(
    const Tensor& grad_loss, const Tensor& grad_squares, const Tensor& user, const Tensor& item,
    const Tensor& users, const Tensor& pos_items, const Tensor& neg_items, const Tensor& slope,
    const Tensor& found_user, const Tensor& found_item, const Tensor& rowptr, const Tensor& col,
    const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
    const OptTensor& ui_col_scale, const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
    const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale) {
  const LayersOperands o(user, item, rowptr, col, t_rowptr, t_col, ui_row_scale, ui_col_scale,
                         iu_row_scale, iu_col_scale, value, t_edge, num_layers, scale);
  o.check_rowptr();
  const BatchOperands ids(o, users, pos_items, neg_items);
  const Triples batch = ids.get();
  const ScalarType type = o.user.scalar_type();
  for (const Tensor* grad : {&grad_loss, &grad_squares}) {
    STD_TORCH_CHECK(
        grad->numel() == 1 && grad->scalar_type() == type && on_device_of(o.user, *grad),
        "mmssl::propagated_bpr_loss_backward: the gradients must be one number like the outputs");
  }
  STD_TORCH_CHECK(matches(slope, o.user, type, {batch.count}) &&
                      matches(found_user, o.user, type, {batch.count, o.width}) &&
                      matches(found_item, o.user, type, {2 * batch.count, o.width}),
                  "mmssl::propagated_bpr_loss_backward: slope, found_user and found_item must be "
                  "what the forward returned");
  const TableOperands found(found_user, found_item, batch.count, 2 * batch.count);
  const Tensor slopes = as_contiguous(slope);
  const Tensor out_user = empty_like(o.user), out_item = empty_like(o.item);
  for_table_dtype(o.user, [&](auto number) {
    using A = decltype(number);
    const bool good = cpu::propagated_bpr_backward(
        o.layers<A>(), batch, o.sides<A>(), found.sides<A>(), data<A>(slopes), *data<A>(grad_loss),
        *data<A>(grad_squares),
        Sides<A>{mutable_data<A>(out_user), mutable_data<A>(out_item), o.width}, torch_threads());
    if (!good) o.report_bad_index();
  });
  return {out_user, out_item};
}

// Updates the first six tensors, of which the moments are like the tables.
Tensor propagated_bpr_step(
    const Tensor& user, const Tensor& item, const Tensor& user_mean, const Tensor& item_mean,
    const Tensor& user_square, const Tensor& item_square, const Tensor& users,
    const Tensor& pos_items, const Tensor& neg_items, const Tensor& rowptr, const Tensor& col,
    const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
    const OptTensor& ui_col_scale, const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
    const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale, double reg,
    double rate, double root, double beta1, double beta2, double eps) {
  const LayersOperands o(user, item, rowptr, col, t_rowptr, t_col, ui_row_scale, ui_col_scale,
                         iu_row_scale, iu_col_scale, value, t_edge, num_layers, scale);
  o.check_rowptr();
  const Tensor* const tables[] = {&user,      &item,        &user_mean,
                                  &item_mean, &user_square, &item_square};
  for (int n = 0; n < 6; ++n) {
    const int64_t rows = n % 2 == 0 ? o.ui.rows() : o.iu.rows();
    STD_TORCH_CHECK(tables[n]->is_contiguous() &&
                        matches(*tables[n], user, user.scalar_type(), {rows, o.width}),
                    "mmssl::propagated_bpr_step: tables and moments must be contiguous, and of one "
                    "dtype and size");
  }
  const BatchOperands ids(o, users, pos_items, neg_items);
  const Tensor terms = new_empty(user, {2});
  for_table_dtype(user, [&](auto number) {
    using A = decltype(number);
    const auto sides = [&](const Tensor& of_user, const Tensor& of_item) {
      return Sides<A>{mutable_data<A>(of_user), mutable_data<A>(of_item), o.width};
    };
    Adam<A> rates;
    rates.rate = A(rate), rates.root = A(root);
    rates.share = A(1 - beta1);
    rates.kept = A(beta2), rates.square_share = A(1 - beta2), rates.eps = A(eps);
    const Moments<A> moments{sides(user_mean, item_mean), sides(user_square, item_square), rates};
    A* const found = mutable_data<A>(terms);
    const bool good = cpu::propagated_bpr_step(o.layers<A>(), ids.get(), sides(user, item), moments,
                                               A(reg), found, found + 1, torch_threads());
    if (!good) o.report_bad_index();
  });
  return terms;
}

std::tuple<Tensor, Tensor> propagated_rows(
    const Tensor& user, const Tensor& item, const Tensor& users, const Tensor& items,
    const Tensor& rowptr, const Tensor& col, const Tensor& t_rowptr, const Tensor& t_col,
    const OptTensor& ui_row_scale, const OptTensor& ui_col_scale, const OptTensor& iu_row_scale,
    const OptTensor& iu_col_scale, const OptTensor& value, const OptTensor& t_edge,
    int64_t num_layers, double scale) {
  const LayersOperands o(user, item, rowptr, col, t_rowptr, t_col, ui_row_scale, ui_col_scale,
                         iu_row_scale, iu_col_scale, value, t_edge, num_layers, scale);
  o.check_rowptr();
  const IdOperands ids(o, users, items);
  const Tensor out_user = new_empty(o.user, {users.numel(), o.width});
  const Tensor out_item = new_empty(o.user, {items.numel(), o.width});
  for_table_dtype(o.user, [&](auto number) {
    using A = decltype(number);
    const Sides<A> out{mutable_data<A>(out_user), mutable_data<A>(out_item), o.width};
    const bool good =
        cpu::propagated_rows(o.layers<A>(), ids.get(), o.sides<A>(), out, torch_threads());
    if (!good) o.report_bad_index();
  });
  return {out_user, out_item};
}

// The scales are those of the transposed graph; of user and item only the sizes matter.
std::tuple<Tensor, Tensor> propagated_rows_backward(
    const Tensor& grad_user, const Tensor& grad_item, const Tensor& user, const Tensor& item,
    const Tensor& users, const Tensor& items, const Tensor& rowptr, const Tensor& col,
    const Tensor& t_rowptr, const Tensor& t_col, const OptTensor& ui_row_scale,
    const OptTensor& ui_col_scale, const OptTensor& iu_row_scale, const OptTensor& iu_col_scale,
    const OptTensor& value, const OptTensor& t_edge, int64_t num_layers, double scale) {
  const LayersOperands o(user, item, rowptr, col, t_rowptr, t_col, ui_row_scale, ui_col_scale,
                         iu_row_scale, iu_col_scale, value, t_edge, num_layers, scale);
  o.check_rowptr();
  const IdOperands ids(o, users, items);
  const ScalarType type = o.user.scalar_type();
  STD_TORCH_CHECK(matches(grad_user, o.user, type, {users.numel(), o.width}) &&
                      matches(grad_item, o.user, type, {items.numel(), o.width}),
                  "mmssl::propagated_rows_backward: the gradients must be like the results");
  const TableOperands grad(grad_user, grad_item, users.numel(), items.numel());
  const Tensor out_user = empty_like(o.user), out_item = empty_like(o.item);
  for_table_dtype(o.user, [&](auto number) {
    using A = decltype(number);
    const Sides<A> out{mutable_data<A>(out_user), mutable_data<A>(out_item), o.width};
    const bool good = cpu::propagated_rows_backward(o.layers<A>(), ids.get(), grad.sides<A>(), out,
                                                    torch_threads());
    if (!good) o.report_bad_index();
  });
  return {out_user, out_item};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "propagate_layers(Tensor user, Tensor item, Tensor rowptr, Tensor col, Tensor t_rowptr, "
      "Tensor t_col, Tensor? ui_row_scale, Tensor? ui_col_scale, Tensor? iu_row_scale, "
      "Tensor? iu_col_scale, Tensor? value, Tensor? t_edge, int num_layers, float scale) "
      "-> (Tensor, Tensor)");
  m.def(
      "propagated_bpr_loss(Tensor user, Tensor item, Tensor users, Tensor pos_items, "
      "Tensor neg_items, Tensor rowptr, Tensor col, Tensor t_rowptr, Tensor t_col, "
      "Tensor? ui_row_scale, Tensor? ui_col_scale, Tensor? iu_row_scale, Tensor? iu_col_scale, "
      "Tensor? value, Tensor? t_edge, int num_layers, float scale) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "propagated_bpr_loss_backward(Tensor grad_loss, Tensor grad_squares, Tensor user, "
      "Tensor item, Tensor users, Tensor pos_items, Tensor neg_items, Tensor slope, "
      "Tensor found_user, Tensor found_item, Tensor rowptr, Tensor col, Tensor t_rowptr, Tensor t_col, "
      "Tensor? ui_row_scale, Tensor? ui_col_scale, Tensor? iu_row_scale, Tensor? iu_col_scale, "
      "Tensor? value, Tensor? t_edge, int num_layers, float scale) "
      "-> (Tensor, Tensor)");
  m.def(
      "propagated_rows(Tensor user, Tensor item, Tensor users, Tensor items, Tensor rowptr, "
      "Tensor col, Tensor t_rowptr, Tensor t_col, Tensor? ui_row_scale, Tensor? ui_col_scale, "
      "Tensor? iu_row_scale, Tensor? iu_col_scale, Tensor? value, Tensor? t_edge, "
      "int num_layers, float scale) -> (Tensor, Tensor)");
  m.def(
      "propagated_rows_backward(Tensor grad_user, Tensor grad_item, Tensor user, Tensor item, "
      "Tensor users, Tensor items, Tensor rowptr, Tensor col, Tensor t_rowptr, Tensor t_col, "
      "Tensor? ui_row_scale, Tensor? ui_col_scale, Tensor? iu_row_scale, Tensor? iu_col_scale, "
      "Tensor? value, Tensor? t_edge, int num_layers, float scale) -> (Tensor, Tensor)");
  m.def(
      "propagated_bpr_step(Tensor(a!) user, Tensor(b!) item, Tensor(c!) user_mean, "
      "Tensor(d!) item_mean, Tensor(e!) user_square, Tensor(f!) item_square, Tensor users, "
      "Tensor pos_items, Tensor neg_items, Tensor rowptr, Tensor col, Tensor t_rowptr, "
      "Tensor t_col, Tensor? ui_row_scale, Tensor? ui_col_scale, Tensor? iu_row_scale, "
      "Tensor? iu_col_scale, Tensor? value, Tensor? t_edge, int num_layers, float scale, float reg, "
      "float rate, float root, float beta1, float beta2, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("propagate_layers", TORCH_BOX(&propagate_layers<Kernels>));
  m.impl("propagated_bpr_loss", TORCH_BOX(&propagated_bpr_loss));
  m.impl("propagated_bpr_loss_backward", TORCH_BOX(&propagated_bpr_loss_backward));
  m.impl("propagated_rows", TORCH_BOX(&propagated_rows));
  m.impl("propagated_rows_backward", TORCH_BOX(&propagated_rows_backward));
  m.impl("propagated_bpr_step", TORCH_BOX(&propagated_bpr_step));
}
