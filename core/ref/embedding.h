// Reference embedding. Shapes and meaning: core/ops.h.
#pragma once

#include "core/ref/number.h"

namespace openmoe::ref {

// x (N, D), table (V, D), ids (N)
template <typename T>
void embedding_forward(T* x, const T* table, const std::int32_t* ids, Index N, Index D) {
  for (Index n = 0; n < N; ++n)
    for (Index d = 0; d < D; ++d) x[n * D + d] = table[ids[n] * D + d];
}

}  // namespace openmoe::ref
