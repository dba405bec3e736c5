// Reference cross-entropy with z-loss. Shapes and meaning: core/ops.h.
#pragma once

#include "core/ref/number.h"

namespace openmoe::ref {

template <typename T>
struct CrossEntropySums {
  T cross_entropy = T(0);  // sum of w (log Z - logit[target])
  T log_z_square = T(0);   // sum of w (log Z)^2
  double correct = 0.0;    // sum of w [argmax == target], ties to the lower id
};

// logits (n, V), targets and weights (n). Rows of weight 0 contribute nothing, whatever their
// logits.
template <typename T>
CrossEntropySums<T> softmax_cross_entropy(const T* logits, const std::int32_t* targets,
                                          const double* weights, Index n, Index V) {
  CrossEntropySums<T> sums;
  for (Index i = 0; i < n; ++i) {
    if (weights[i] == 0.0) continue;
    const T* row = logits + i * V;
    const T log_z = log_sum_exp(row, V);
    Index best = 0;
    for (Index v = 1; v < V; ++v)
      if (real_part(row[v]) > real_part(row[best])) best = v;
    sums.cross_entropy += T(weights[i]) * (log_z - row[targets[i]]);
    sums.log_z_square += T(weights[i]) * log_z * log_z;
    if (best == targets[i]) sums.correct += weights[i];
  }
  return sums;
}

}  // namespace openmoe::ref
