// Schemas of the operators that build index arrays on a GPU. On the CPU mmssl._host builds them.
#include "common/torch.h"

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "index_of_rows(Tensor rowptr, Tensor col, Tensor rows, int num_cols, int capacity) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "index_of_lists(Tensor lists, Tensor rowptr, Tensor col, int num_cols) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def("degree_scale(Tensor rowptr, bool root) -> Tensor");
}
