// Causal attention within segments: o = softmax(scale q k^T) v over positions s <= t with
// segment_ids[s] == segment_ids[t] > 0. Blocked with an online softmax, so that no T x T matrix
// exists (Dao et al. 2022, "FlashAttention", algorithms 1 and 4); pairs of blocks that cannot
// attend to each other are skipped. Segments need not be contiguous.
//
// q, k, v, o and their gradients (B, T, H, Dh); segment_ids (B, T); log_z (B, H, T): logsumexp of
// the scaled scores, saved for the backward. Rows with segment_ids <= 0 give o = 0 and log_z = 0,
// and their gradients are exactly 0. Threads share out (row, head) pairs; results do not depend on
// their number. S is float, or BFloat16 in memory with f32 arithmetic.
#pragma once

#include <cstdint>

namespace openmoe::cpu {

template <class S>
void attention_forward(S* o, float* log_z, const S* q, const S* k, const S* v,
                       const std::int32_t* segment_ids, std::int64_t B, std::int64_t T,
                       std::int64_t H, std::int64_t Dh, float scale);

// dq, dk and dv are overwritten. With p the recomputed weights, D = sum over Dh of d_o o and dp =
// d_o v^T: dv = p^T d_o, ds = p (dp - D), dq = scale ds k, dk = scale ds^T q.
template <class S>
void attention_backward(S* dq, S* dk, S* dv, const S* d_o, const S* q, const S* k, const S* v,
                        const S* o, const std::int32_t* segment_ids, const float* log_z,
                        std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t Dh,
                        float scale);

}  // namespace openmoe::cpu
