// The losses of a batch of triples as one loss (mmssl/ops/_batch_loss.py): launchers over raw pointers.
//   loss = w0 bpr + w1 squares + w2 |features|^2 + w3 (sum of contrast) + w4 score
// with bpr and squares as in bpr.h, of distinct or repeated users.
#pragma once
#include "common/cuda_kernel.h"
#include "ops/bpr/bpr.h"

namespace mmssl::cuda {

// The rows of a batch's users: anchor (M, B, D) of the modalities, and positive (M, B, D), M copies of
// those of user.
template <class A>
struct BatchRows {
  int64_t views, batch, d;
  const int64_t* users;         // (B)
  const A* user;                // (U, D)
  const A* modality;            // (M, U, D), with the steps that follow
  int64_t view_step, row_step;
  A *anchor, *positive;
};

template <class A>
struct BatchTerms {
  BprArgs<A> triples;
  const A* features[2];         // any order
  int64_t feature_counts[2];
  const A* contrast;            // (contrast_count) or null
  int64_t contrast_count;
  const A* score;               // (1) or null
  const A* weights;             // (5)
  A* slope;                     // (B), see bpr.h
  A* out;                       // (6): the loss and its terms, weighted
};

// The gradients for user (U, D), item (I, D) and, with to_anchor, modality (M, U, D), one after the other.
// The scaled weights are the weights times the gradient of the loss; only the first two are read.
template <class A>
struct BatchGradient {
  BprArgs<A> triples;
  const A *scaled, *slope;
  int64_t views;
  const A *to_anchor, *to_positive;  // (M, B, D) or null
  A* out;
};

// Each in one launch, the terms in two, the gradient after a clearing; scratch: batch_scratch() doubles.
int64_t batch_scratch(int64_t batch);
template <class A>
cudaError_t launch_batch_rows(const BatchRows<A>& a, cudaStream_t stream);
template <class A>
cudaError_t launch_batch_terms(const BatchTerms<A>& a, double* scratch, cudaStream_t stream);
template <class A>
cudaError_t launch_batch_gradient(const BatchGradient<A>& a, cudaStream_t stream);

}  // namespace mmssl::cuda
