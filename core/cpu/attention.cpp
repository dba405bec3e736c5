#include "core/cpu/attention.h"

#include <omp.h>

#include "core/base/check.h"
#include "core/cpu/kernels.h"
#include "core/cpu/kernels_buffer.h"

namespace openmoe::cpu {
namespace {

// Runs body(head kernels' view of pair, row, head, scratch) for every (row, head).
template <class Body>
void for_each_head(std::int64_t B, std::int64_t H, std::int64_t scratch_floats,
                   const char* operation, const Body& body) {
  bool out_of_memory = false;
#pragma omp parallel if (B * H > 1 && !omp_in_parallel())
  {
    float* scratch = thread_buffer(ThreadBuffer::attention, scratch_floats);
    if (scratch == nullptr) {
#pragma omp atomic write
      out_of_memory = true;
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t pair = 0; pair < B * H; ++pair) {
      if (scratch != nullptr) body(pair / H, pair % H, scratch);
    }
  }
  if (out_of_memory) throw_out_of_buffers(operation);
}

void check_sizes(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t Dh) {
  OPENMOE_CHECK(B >= 0 && T >= 0 && H >= 0 && Dh >= 1, "B ", B, " T ", T, " H ", H, " Dh ", Dh);
}

}  // namespace

template <class S>
void attention_forward(S* o, float* log_z, const S* q, const S* k, const S* v,
                       const std::int32_t* segment_ids, std::int64_t B, std::int64_t T,
                       std::int64_t H, std::int64_t Dh, float scale) {
  check_sizes(B, T, H, Dh);
  if (T == 0) return;
  const AttentionKernels<S>& kernels = kernels_for(cpu_isa()).attention_of<S>();
  for_each_head(B, H, kernels.forward_scratch(T, Dh), "attention_forward",
                [&](std::int64_t row, std::int64_t head, float* scratch) {
                  const std::int64_t at = row * T * H * Dh + head * Dh;
                  const AttentionHead shape{T, Dh, H * Dh, segment_ids + row * T, scale};
                  kernels.forward(shape, o + at, log_z + (row * H + head) * T, q + at, k + at,
                                  v + at, scratch);
                });
}

template <class S>
void attention_backward(S* dq, S* dk, S* dv, const S* d_o, const S* q, const S* k, const S* v,
                        const S* o, const std::int32_t* segment_ids, const float* log_z,
                        std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t Dh,
                        float scale) {
  check_sizes(B, T, H, Dh);
  if (T == 0) return;
  const AttentionKernels<S>& kernels = kernels_for(cpu_isa()).attention_of<S>();
  for_each_head(B, H, kernels.backward_scratch(T, Dh), "attention_backward",
                [&](std::int64_t row, std::int64_t head, float* scratch) {
                  const std::int64_t at = row * T * H * Dh + head * Dh;
                  const AttentionHead shape{T, Dh, H * Dh, segment_ids + row * T, scale};
                  kernels.backward(shape, dq + at, dk + at, dv + at, d_o + at, q + at, k + at,
                                   v + at, o + at, log_z + (row * H + head) * T, scratch);
                });
}

template void attention_forward(float*, float*, const float*, const float*, const float*,
                                const std::int32_t*, std::int64_t, std::int64_t, std::int64_t,
                                std::int64_t, float);
template void attention_forward(BFloat16*, float*, const BFloat16*, const BFloat16*,
                                const BFloat16*, const std::int32_t*, std::int64_t, std::int64_t,
                                std::int64_t, std::int64_t, float);
template void attention_backward(float*, float*, float*, const float*, const float*, const float*,
                                 const float*, const float*, const std::int32_t*, const float*,
                                 std::int64_t, std::int64_t, std::int64_t, std::int64_t, float);
template void attention_backward(BFloat16*, BFloat16*, BFloat16*, const BFloat16*, const BFloat16*,
                                 const BFloat16*, const BFloat16*, const BFloat16*,
                                 const std::int32_t*, const float*, std::int64_t, std::int64_t,
                                 std::int64_t, std::int64_t, float);

}  // namespace openmoe::cpu
