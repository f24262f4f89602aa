// Schemas of the operators between the products of a critic's pass on a GPU. The CPU has no kernels for
// them: there the same numbers come from smaller operators (mmssl/ops/_critic.py).
#include "common/torch.h"

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def("critic_rows(Tensor pre, Tensor bias, Tensor? alpha, int rows, int groups) -> Tensor");
  m.def(
      "critic_rows_backward(Tensor grad, Tensor? alpha, int rows, int batch) -> Tensor");
  m.def("critic_scores(Tensor y, Tensor weight, Tensor bias, int last) -> (Tensor, Tensor, Tensor)");
  m.def("critic_norms(Tensor image, Tensor other) -> (Tensor, Tensor)");
  m.def("critic_terms(Tensor share, Tensor? norm, int rows, float weight) -> Tensor");
  m.def(
      "critic_scale(Tensor grad, Tensor factor, Tensor first, Tensor? second, float weight) -> "
      "(Tensor, Tensor)");
  m.def(
      "critic_logits_backward(Tensor grad, Tensor share, Tensor slope, Tensor like, Tensor? up, "
      "Tensor weight, int rows) -> (Tensor, Tensor)");
  m.def(
      "critic_last_backward(Tensor to_logit, Tensor slope, Tensor y, Tensor? up, int rows) -> "
      "(Tensor, Tensor)");
}
