// Schemas of info_nce and its binding to the CPU kernel.
#include <algorithm>
#include <vector>

#include "ops/info_nce/info_nce.h"
#include "ops/info_nce/operands.h"

namespace {

using namespace mmssl;

class Kernels {
 public:
  explicit Kernels(const InfoNceOperands& o)
      : args_{o.pairs,
              o.n,
              o.m,
              o.k,
              o.d,
              data<int64_t>(o.target),
              o.options.in_batch,
              o.options.intra_view,
              o.options.symmetric,
              o.accumulation == ScalarType::Double ? *data<double>(o.temperature)
                                                   : double(*data<float>(o.temperature)),
              o.options.eps},
        count_(o.count) {
    o.check_values();
  }

  template <class T, class A>
  void forward(const T* anchor, const T* positive, const T* negatives, A* loss,
               double* saved) const {
    if (!count_.has_value()) {
      cpu::info_nce_forward<T, A>(args_, anchor, positive, negatives, loss, saved, torch_threads());
      return;
    }
    std::fill_n(loss, args_.pairs * args_.n, A(0));
    std::fill_n(saved, (args_.directions() + 1) * args_.pairs * args_.n, 0.0);
    for_each_pair([&](const cpu::InfoNceArgs& own, int64_t row) {
      std::vector<double> kept((own.directions() + 1) * own.n);
      cpu::info_nce_forward<T, A>(own, anchor + row * own.d, positive + row * own.d, nullptr,
                                  loss + row, kept.data(), torch_threads());
      for (int way = 0; way <= own.directions(); ++way) {
        std::copy_n(kept.data() + way * own.n, own.n, saved + way * args_.pairs * args_.n + row);
      }
    });
  }

  template <class T, class A>
  void backward(const T* anchor, const T* positive, const T* negatives, const double* saved,
                const A* grad, T* grad_anchor, T* grad_positive, T* grad_negatives,
                A* grad_temperature) const {
    if (!count_.has_value()) {
      cpu::info_nce_backward<T, A>(args_, anchor, positive, negatives, saved, grad, grad_anchor,
                                   grad_positive, grad_negatives, grad_temperature,
                                   torch_threads());
      return;
    }
    for (T* out : {grad_anchor, grad_positive}) {
      std::fill_n(out, args_.pairs * args_.n * args_.d, T{});
    }
    double sum = 0;
    for_each_pair([&](const cpu::InfoNceArgs& own, int64_t row) {
      std::vector<double> kept((own.directions() + 1) * own.n);
      for (int way = 0; way <= own.directions(); ++way) {
        std::copy_n(saved + way * args_.pairs * args_.n + row, own.n, kept.data() + way * own.n);
      }
      A of_temperature = 0;
      cpu::info_nce_backward<T, A>(own, anchor + row * own.d, positive + row * own.d, nullptr,
                                   kept.data(), grad + row, grad_anchor + row * own.d,
                                   grad_positive + row * own.d, nullptr, &of_temperature,
                                   torch_threads());
      sum += of_temperature;
    });
    *grad_temperature = A(sum);
  }

 private:
  // Calls f(arguments, first row) for every pair as a problem of the rows that count.
  template <class F>
  void for_each_pair(const F& f) const {
    cpu::InfoNceArgs own = args_;
    own.pairs = 1;
    for (int64_t pair = 0; pair < args_.pairs; ++pair) {
      own.n = own.m = data<int64_t>(count_)[pair];
      f(own, pair * args_.n);
    }
  }

  cpu::InfoNceArgs args_;
  OptTensor count_;
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mmssl, m) {
  m.def(
      "info_nce(Tensor anchor, Tensor positive, Tensor temperature, Tensor? negatives, "
      "bool intra_view, bool symmetric, float eps, bool tf32, Tensor? target=None, "
      "bool in_batch=True, Tensor? num_rows=None) -> (Tensor, Tensor)");
  m.def(
      "info_nce_backward(Tensor grad, Tensor anchor, Tensor positive, Tensor temperature, "
      "Tensor? negatives, Tensor saved, bool intra_view, bool symmetric, float eps, bool tf32, "
      "Tensor? target=None, bool in_batch=True, Tensor? num_rows=None) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mmssl, CPU, m) {
  m.impl("info_nce", TORCH_BOX(&info_nce<Kernels>));
  m.impl("info_nce_backward", TORCH_BOX(&info_nce_backward<Kernels>));
}
