// Reference matrix products. Shapes and meaning: core/ops.h.
#pragma once

#include "core/ref/number.h"

namespace openmoe::ref {

// y = x w^T. y (N, out), x (N, in), w (out, in)
template <typename T>
void linear_forward(T* y, const T* x, const T* w, Index N, Index in, Index out) {
  for (Index n = 0; n < N; ++n)
    for (Index o = 0; o < out; ++o) {
      T sum(0);
      for (Index i = 0; i < in; ++i) sum += x[n * in + i] * w[o * in + i];
      y[n * out + o] = sum;
    }
}

// y = x w[g] for the rows [offsets[g], offsets[g+1]) of group g; other rows are left alone. w (El,
// in, out), offsets (El+1)
template <typename T>
void grouped_matmul_forward(T* y, const T* x, const T* w, const Index* offsets, Index El, Index in,
                            Index out) {
  for (Index g = 0; g < El; ++g)
    for (Index n = offsets[g]; n < offsets[g + 1]; ++n)
      for (Index o = 0; o < out; ++o) {
        T sum(0);
        for (Index i = 0; i < in; ++i) sum += x[n * in + i] * w[(g * in + i) * out + o];
        y[n * out + o] = sum;
      }
}

}  // namespace openmoe::ref
