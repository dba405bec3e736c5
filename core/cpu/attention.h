// Causal attention within segments, f32, without a T x T matrix in memory. Shapes and meaning:
// core/ops.h. Uses all OpenMP threads; results do not depend on their number.
#pragma once

#include <cstdint>

namespace openmoe::cpu {

// o, q, k, v (B, T, H, Dh), log_z (B, H, T) for the backward, segment_ids (B, T); o is 0 at padded
// positions.
void attention_forward(float* o, float* log_z, const float* q, const float* k, const float* v,
                       const std::int32_t* segment_ids, std::int64_t B, std::int64_t T,
                       std::int64_t H, std::int64_t Dh, float scale);

// dq, dk and dv are overwritten.
void attention_backward(float* dq, float* dk, float* dv, const float* d_o, const float* q,
                        const float* k, const float* v, const float* o,
                        const std::int32_t* segment_ids, const float* log_z, std::int64_t B,
                        std::int64_t T, std::int64_t H, std::int64_t Dh, float scale);

}  // namespace openmoe::cpu
