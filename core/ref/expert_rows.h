// Reference movement of tokens to expert rows and back. Shapes and meaning: core/ops.h.
#pragma once

#include "core/ref/number.h"

namespace openmoe::ref {

// rows[s] = x[row_token[s]]. rows (S, D), row_token (S)
template <typename T>
void gather_rows(T* rows, const T* x, const std::int32_t* row_token, Index S, Index D) {
  for (Index s = 0; s < S; ++s)
    for (Index d = 0; d < D; ++d) rows[s * D + d] = x[row_token[s] * D + d];
}

// y[n] += sum over k with a row of gate[n, k] * rows[assignment_row[n, k]]. y (N, D), gate and
// assignment_row (N, 2)
template <typename T>
void combine_rows_forward_accumulate(T* y, const T* rows, const T* gate,
                                     const std::int32_t* assignment_row, Index N, Index D) {
  for (Index n = 0; n < N; ++n)
    for (Index k = 0; k < 2; ++k) {
      const std::int32_t row = assignment_row[n * 2 + k];
      if (row < 0) continue;
      for (Index d = 0; d < D; ++d) y[n * D + d] += gate[n * 2 + k] * rows[row * D + d];
    }
}

}  // namespace openmoe::ref
