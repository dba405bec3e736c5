// Reference rotary position embedding (Su et al. 2021, equation 34 with pairs (j, j + Dh/2)). See
// core/ops.h.
#pragma once

#include "core/ref/number.h"

namespace openmoe::ref {

// In place on x (B, T, H, Dh); angle = t * base^(-2j/Dh), negated for the inverse.
template <typename T>
void rope(T* x, double base, bool inverse, Index B, Index length, Index H, Index Dh) {
  const Index half = Dh / 2;
  for (Index b = 0; b < B; ++b)
    for (Index t = 0; t < length; ++t)
      for (Index h = 0; h < H; ++h) {
        T* head = x + ((b * length + t) * H + h) * Dh;
        for (Index j = 0; j < half; ++j) {
          const double frequency =
              std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(Dh));
          const double angle = (inverse ? -1.0 : 1.0) * static_cast<double>(t) * frequency;
          const T cos(std::cos(angle)), sin(std::sin(angle));
          const T x1 = head[j], x2 = head[j + half];
          head[j] = x1 * cos - x2 * sin;
          head[j + half] = x2 * cos + x1 * sin;
        }
      }
}

}  // namespace openmoe::ref
