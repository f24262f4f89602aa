// Schemas of the operators that build index arrays on a GPU. On the CPU mmssl._host builds them.
#include "common/torch.h"

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "index_of_rows(Tensor rowptr, Tensor col, Tensor rows, int num_cols, int capacity) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "index_of_lists(Tensor lists, Tensor rowptr, Tensor col, Tensor(a!) out_rowptr, "
      "Tensor(b!) out_col, Tensor(c!) out_t_rowptr, Tensor(d!) out_t_col, Tensor(e!) scale, "
      "Tensor(f!) t_scale, bool root) -> ()");
  m.def("store_lists(Tensor(a!) lists, Tensor pick, Tensor[] top) -> ()");
  m.def("degree_scale(Tensor rowptr, bool root) -> Tensor");
}
