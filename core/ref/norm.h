// Reference RMSNorm (Zhang and Sennrich 2019). Shapes and meaning: core/ops.h.
#pragma once

#include "core/ref/number.h"

namespace openmoe::ref {

// y = x rstd w where segment_ids[n] > 0, else 0 with rstd 0. y, x (N, D), rstd (N), w (D),
// segment_ids (N)
template <typename T>
void rms_norm_forward(T* y, T* rstd, const T* x, const T* w, const std::int32_t* segment_ids,
                      double eps, Index N, Index D) {
  using std::sqrt;
  for (Index n = 0; n < N; ++n) {
    T square(0);
    for (Index d = 0; d < D; ++d) square += x[n * D + d] * x[n * D + d];
    const bool real = segment_ids[n] > 0;
    rstd[n] = real ? T(1) / sqrt(square / T(static_cast<double>(D)) + T(eps)) : T(0);
    for (Index d = 0; d < D; ++d) y[n * D + d] = x[n * D + d] * rstd[n] * w[d];
  }
}

}  // namespace openmoe::ref
