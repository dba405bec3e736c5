// Reference FFN activations (Shazeer 2020). Shapes and meaning: core/ops.h.
#pragma once

#include "core/config/recipe.h"
#include "core/ref/number.h"

namespace openmoe::ref {

// h, up (N, F), gate (N, Fg)
template <typename T>
void ffn_activation_forward(T* h, const T* gate, const T* up, FfnKind kind, Index N, Index F) {
  const bool gated = kind == FfnKind::gated_swiglu;
  const Index gate_width = gated ? 2 * F : F;
  for (Index n = 0; n < N; ++n)
    for (Index f = 0; f < F; ++f) {
      const T* row = gate + n * gate_width;
      const T linear = gated ? row[f] : T(1);
      const T g = gated ? row[F + f] : row[f];
      h[n * F + f] = linear * (g * sigmoid(g)) * up[n * F + f];
    }
}

}  // namespace openmoe::ref
