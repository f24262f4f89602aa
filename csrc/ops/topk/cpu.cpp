// Schema of masked_topk and its binding to the CPU kernel.
#include "ops/topk/operands.h"

namespace {

using namespace mmssl;

struct Kernel {
  explicit Kernel(const TopkOperands& o) { o.check_indices(); }

  template <class T, class A>
  void operator()(const TopkArgs<T, A>& args) const {
    cpu::masked_topk(args, torch_threads());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "masked_topk(Tensor user_emb, Tensor item_emb, int k, Tensor? users, Tensor? rowptr, "
      "Tensor? col) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("masked_topk", TORCH_BOX(&masked_topk<Kernel>));
}
