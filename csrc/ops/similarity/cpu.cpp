// Schemas of the operators that join the products of similarity rows on a GPU. The CPU has no kernels
// for them: there the same numbers come from smaller operators (mmssl/ops/masked_similarity.py).
#include "common/torch.h"

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "similarity_tables(Tensor[] user, Tensor[] item, Tensor users) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "similarity_factors(Tensor user, Tensor item, Tensor through, Tensor rowptr, Tensor col) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "similarity_factors_backward(Tensor to_left, Tensor to_value, Tensor user, Tensor item, "
      "Tensor through, Tensor masked, Tensor scale, Tensor rowptr, Tensor col) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "gumbel_rows(Tensor uniform, Tensor(a!) left, Tensor(b!) value, Tensor rowptr, Tensor col, "
      "float tau, float noise, float zeta) -> ()");
  m.def(
      "stack_edges(Tensor rowptr, Tensor col, Tensor t_rowptr, Tensor t_col, Tensor t_edge, "
      "int blocks) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
