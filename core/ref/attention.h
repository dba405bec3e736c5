// Reference causal attention within segments. Shapes and meaning: core/ops.h.
#pragma once

#include <vector>

#include "core/ref/number.h"

namespace openmoe::ref {

// o, q, k, v (B, T, H, Dh), log_z (B, H, T), segment_ids (B, T). Padded positions get o = 0 and
// log_z = 0.
template <typename T>
void attention_forward(T* o, T* log_z, const T* q, const T* k, const T* v,
                       const std::int32_t* segment_ids, double scale, Index B, Index length,
                       Index H, Index Dh) {
  using std::exp;
  std::vector<T> logits;
  std::vector<Index> seen;
  const auto at = [&](Index b, Index t, Index h) { return ((b * length + t) * H + h) * Dh; };
  for (Index b = 0; b < B; ++b)
    for (Index h = 0; h < H; ++h)
      for (Index t = 0; t < length; ++t) {
        const std::int32_t segment = segment_ids[b * length + t];
        T* out = o + at(b, t, h);
        for (Index d = 0; d < Dh; ++d) out[d] = T(0);
        log_z[(b * H + h) * length + t] = T(0);
        if (segment <= 0) continue;
        logits.clear();
        seen.clear();
        for (Index s = 0; s <= t; ++s) {
          if (segment_ids[b * length + s] != segment) continue;
          T dot(0);
          for (Index d = 0; d < Dh; ++d) dot += q[at(b, t, h) + d] * k[at(b, s, h) + d];
          logits.push_back(dot * T(scale));
          seen.push_back(s);
        }
        const T z = log_sum_exp(logits.data(), static_cast<Index>(logits.size()));
        log_z[(b * H + h) * length + t] = z;
        for (std::size_t i = 0; i < seen.size(); ++i) {
          const T weight = exp(logits[i] - z);
          for (Index d = 0; d < Dh; ++d) out[d] += weight * v[at(b, seen[i], h) + d];
        }
      }
}

}  // namespace openmoe::ref
