#include <algorithm>

#include "cuda/columns.h"
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"
#include "cuda/scratch_sizes.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// A warp per row, which it reads twice: the second time from the cache.
// hot: at least 4 blocks per SM
// bytes: 6 of 6 per element of y (bf16 y, f32 x), 16 in flight per thread, 4 more from L2
template <typename Y, int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    rms_norm_forward_kernel(Y* y, float* rstd, const float* x, const float* w,
                            const std::int32_t* segment_ids, float eps, std::int64_t N,
                            std::int64_t D) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t n = global_thread() / kWarp; n < N; n += num_global_threads() / kWarp) {
    const bool real = segment_ids[n] > 0;
    float square = 0.0f;
    if (real)
      for (std::int64_t d = lane * kWidth; d < D; d += kWarp * kWidth) {
        float value[kWidth];
        load(value, x + n * D + d);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) square += value[j] * value[j];
      }
    square = warp_sum(square);
    const float inverse = real ? 1.0f / sqrtf(square / static_cast<float>(D) + eps) : 0.0f;
    if (lane == 0) rstd[n] = inverse;
    for (std::int64_t d = lane * kWidth; d < D; d += kWarp * kWidth) {
      float value[kWidth], weight[kWidth];
      load(value, x + n * D + d);
      load(weight, w + d);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) value[j] = real ? value[j] * inverse * weight[j] : 0.0f;
      store(y + n * D + d, value);
    }
  }
}

// y = x^ w with x^ = x rstd and d rstd / dx = -rstd^3 x / D, hence dx = rstd (dy w - x^ mean(dy w
// x^)) and dw = sum of dy x^. A block takes rows blockIdx.x, + gridDim.x, ... one after the other
// and keeps its sum of dw in shared memory, where each thread owns its columns; partial (gridDim.x,
// D) receives it.
// hot: at least 4 blocks per SM, with 12288 bytes of dynamic shared memory (D 3072)
// bytes: 16 of 16 per element of dx (f32), 32 in flight per thread, 8 more from L2
template <int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    rms_norm_backward_kernel(float* dx, float* partial, const float* dy, const float* x,
                             const float* w, const std::int32_t* segment_ids, const float* rstd,
                             std::int64_t N, std::int64_t D) {
  __shared__ float room[2][kWarp];
  float* const dw = dynamic_shared<float>();
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth,
                     stride = kThreads * kWidth;
  for (std::int64_t d = first; d < D; d += stride)
#pragma unroll
    for (int j = 0; j < kWidth; ++j) dw[d + j] = 0.0f;
  int turn = 0;
  for (std::int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    if (segment_ids[n] <= 0) continue;
    const float inverse = rstd[n];
    float sum = 0.0f;
    for (std::int64_t d = first; d < D; d += stride) {
      float gradient[kWidth], value[kWidth], weight[kWidth];
      load(gradient, dy + n * D + d);
      load(value, x + n * D + d);
      load(weight, w + d);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sum += gradient[j] * weight[j] * value[j];
        dw[d + j] += gradient[j] * (value[j] * inverse);
      }
    }
    // Two rooms by turns: a warp may begin the next row while another still reads this row's sums.
    const float mean = block_sum(sum, room[turn]) * inverse / static_cast<float>(D);
    turn = 1 - turn;
    for (std::int64_t d = first; d < D; d += stride) {
      float gradient[kWidth], value[kWidth], weight[kWidth], out[kWidth];
      load(gradient, dy + n * D + d);
      load(value, x + n * D + d);
      load(weight, w + d);
      load(out, dx + n * D + d);
#pragma unroll
      for (int j = 0; j < kWidth; ++j)
        out[j] += inverse * (gradient[j] * weight[j] - value[j] * inverse * mean);
      store(dx + n * D + d, out);
    }
  }
  for (std::int64_t d = first; d < D; d += stride)
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      partial[static_cast<std::int64_t>(blockIdx.x) * D + d + j] = dw[d + j];
}

}  // namespace
}  // namespace cuda

// A padded row gets y = 0 and rstd = 0.
void CudaOps::do_rms_norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, Tensor segment_ids,
                                  float eps) {
  const std::int64_t N = x.size(0), D = x.size(1);
  cuda::with_storage(y.dtype, [&]<typename Y>(std::type_identity<Y>) {
    constexpr int kWidth = cuda::kVector<Y>;
    cuda::with_width<kWidth>(cuda::can_vectorise(kWidth, D, y, x, w), [&](auto width) {
      cuda::launch(stream_, cuda::blocks_for(N, cuda::kThreads / cuda::kWarp),
                   cuda::rms_norm_forward_kernel<Y, width.value>, y.as<Y>(), rstd.as<float>(),
                   x.as<float>(), w.as<float>(), segment_ids.as<std::int32_t>(), eps, N, D);
    });
  });
}

std::int64_t cuda::norm_backward_scratch(std::int64_t N, std::int64_t D) {
  return std::min(N, kMaxPartials) * D * static_cast<std::int64_t>(sizeof(float));
}

void CudaOps::do_rms_norm_backward_accumulate(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w,
                                              Tensor segment_ids, Tensor rstd) {
  const std::int64_t N = x.size(0), D = x.size(1);
  if (N == 0 || D == 0) return;
  const std::int64_t blocks = std::min(N, cuda::kMaxPartials), float_bytes = sizeof(float);
  float* const partial = static_cast<float*>(scratch_.reserve(cuda::norm_backward_scratch(N, D)));
  cuda::with_width<4>(cuda::can_vectorise(4, D, dx, dy, x, w), [&](auto width) {
    cuda::launch(
        stream_, {.blocks = blocks, .threads = cuda::kThreads, .shared_bytes = D * float_bytes},
        cuda::rms_norm_backward_kernel<width.value>, dx.as<float>(), partial, dy.as<float>(),
        x.as<float>(), w.as<float>(), segment_ids.as<std::int32_t>(), rstd.as<float>(), N, D);
  });
  cuda::add_column_sums(stream_, dw.as<float>(), partial, blocks, D);
}

}  // namespace openmoe
