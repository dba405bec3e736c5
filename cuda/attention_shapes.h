// What the two kinds of attention kernels share, and the calls of the tensor-core ones.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace openmoe::cuda {

struct AttentionShape {
  std::int64_t B, T, H, Dh;
  float scale;
  bool vectors;  // rows of heads can be moved in vectors of 16 bytes
  // (B) on the device: rows with a value of at least 0 are computed elsewhere; null: none is.
  const std::int32_t* elsewhere = nullptr;

  __device__ bool is_elsewhere(std::int64_t b) const {
    return elsewhere != nullptr && elsewhere[b] >= 0;
  }
};

// Widest head of the tensor-core kernels.
inline constexpr std::int64_t kMaxMmaHeadDim = 128;

// As Ops::attention_forward and _backward; delta (B, H, T) = <d_o, o>.
void mma_attention_forward(cudaStream_t stream, __nv_bfloat16* o, float* log_z,
                           const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v,
                           const std::int32_t* segment_ids, const AttentionShape& shape);
void mma_attention_backward(cudaStream_t stream, __nv_bfloat16* dq, __nv_bfloat16* dk,
                            __nv_bfloat16* dv, const __nv_bfloat16* d_o, const __nv_bfloat16* q,
                            const __nv_bfloat16* k, const __nv_bfloat16* v,
                            const std::int32_t* segment_ids, const float* log_z, const float* delta,
                            const AttentionShape& shape);

}  // namespace openmoe::cuda
