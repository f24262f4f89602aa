// Checks and unpacks the matrices of tall_product, gram and transposed. Shapes: products.h.
#pragma once
#include "common/torch.h"

namespace mmssl {

struct ProductOperands {
  ProductOperands(const Tensor& x_, const char* op)
      : x(as_contiguous(x_)), type(x.scalar_type()), n(0), p(0) {
    STD_TORCH_CHECK(x.dim() == 2 && is_supported(type), "mmssl::", op,
                    ": expected a matrix of float32, float64 or bfloat16");
    n = x.size(0), p = x.size(1);
  }

  Tensor x;
  ScalarType type;
  int64_t n, p;  // rows and columns of x
};

struct TallProductOperands : ProductOperands {
  TallProductOperands(const Tensor& a, const Tensor& b)
      : ProductOperands(a, "tall_product"), other(as_contiguous(b)) {
    STD_TORCH_CHECK(matches(other, x, type, {n, kAny}) && type != ScalarType::BFloat16,
                    "mmssl::tall_product: a and b must have the same number of rows, float32 or "
                    "float64, on one device");
  }

  Tensor other;  // b, where x is a
};

}  // namespace mmssl
