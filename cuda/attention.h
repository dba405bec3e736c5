// This program's own attention kernels, on tensors: what Ops::attention_forward and _backward ask
// for, on tensor cores where type and width allow it, else portable.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor.h"

namespace openmoe::cuda {

inline constexpr std::int64_t kMaxHeadDim = 256;

struct AttentionForward {
  Tensor o, log_z, q, k, v, segment_ids;
};
struct AttentionBackward {
  Tensor dq, dk, dv, d_o, q, k, v, o, segment_ids, log_z;
};

// Not empty. elsewhere (B) on the device: rows with a value of at least 0 are left alone; null:
// all are computed.
void builtin_attention_forward(cudaStream_t stream, const AttentionForward& x, float scale,
                               const std::int32_t* elsewhere = nullptr);
// delta (B, H, T): room for <d_o, o>.
void builtin_attention_backward(cudaStream_t stream, const AttentionBackward& x, float* delta,
                                float scale, const std::int32_t* elsewhere = nullptr);

}  // namespace openmoe::cuda
