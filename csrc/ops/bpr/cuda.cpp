// Binds bpr_loss to its CUDA kernels.
#include "common/cuda_binding.h"
#include "ops/bpr/kernels.cuh"
#include "ops/bpr/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const BprOperands& o)
      : device_(o.user_emb), scratch_(o.new_sums({2, o.batch})) {}
  explicit Kernels(const BprGradOperands& o) : device_(o.user_emb) {
    STD_TORCH_CHECK(o.user_order.has_value() && o.item_order.has_value(),
                    "mmssl::bpr_loss_backward: on a GPU user_order and item_order are required");
  }

  template <class T, class A>
  void forward(const BprArgs<T>& a, A* loss, A* squares, A* slope) const {
    MMSSL_CUDA_CHECK(cuda::launch_bpr(a, loss, squares, slope, mutable_data<A>(*scratch_),
                                      device_.stream));
  }

  template <class T, class A>
  void backward(const BprArgs<T>& a, const A* grad_loss, const A* grad_squares, const A* slope,
                const int64_t* user_order, const int64_t* item_order, T* grad_user,
                T* grad_item) const {
    MMSSL_CUDA_CHECK(cuda::launch_bpr_backward(a, grad_loss, grad_squares, slope, user_order,
                                               item_order, grad_user, grad_item, device_.stream));
  }

 private:
  cuda::CurrentDevice device_;
  OptTensor scratch_;  // of the forward
};

}  // namespace

MMSSL_CUDA_LIBRARY(m) {
  m.impl("bpr_loss", TORCH_BOX(&bpr_loss<Kernels>));
  m.impl("bpr_loss_backward", TORCH_BOX(&bpr_loss_backward<Kernels>));
}
