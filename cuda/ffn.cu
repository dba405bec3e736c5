#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// Where b of the i-th vector of h begins: row n of the gate begins at 2 n F.
template <typename Index>
__device__ inline std::int64_t gate_place(std::int64_t i, int width, std::int64_t F) {
  const std::int64_t n = static_cast<Index>(i) / static_cast<Index>(F / width);
  return i * width + (n + 1) * F;
}

// swiglu: h = b sigmoid(b) up. gated: h = a b sigmoid(b) up with gate = [a | b] by columns. kWidth
// neighbours per thread.
// hot: at least 5 blocks per SM
// bytes: 6 of 6 per element of h (bf16, swiglu), 32 in flight per thread
template <typename T, bool kGated, int kWidth, typename Index>
__global__ void __launch_bounds__(kThreads)
    ffn_forward_kernel(T* h, const T* gate, const T* up, std::int64_t vectors, std::int64_t F) {
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    const std::int64_t at = i * kWidth, b_at = kGated ? gate_place<Index>(i, kWidth, F) : at;
    float b[kWidth], u[kWidth], out[kWidth];
    load(b, gate + b_at);
    load(u, up + at);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) out[j] = b[j] * sigmoid(b[j]) * u[j];
    if constexpr (kGated) {
      float a[kWidth];
      load(a, gate + b_at - F);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) out[j] *= a[j];
    }
    store(h + at, out);
  }
}

// With s = b sigmoid(b): dup = dh a s, da = dh s up, db = dh a up s', s' = sigmoid(b) (1 + b (1 -
// sigmoid(b))). All of a place is read before any of it is written: dgate and dup may be gate and
// up.
// hot: at least 4 blocks per SM
// bytes: 10 of 10 per element of dh (bf16, swiglu), 48 in flight per thread
template <typename T, bool kGated, int kWidth, typename Index>
__global__ void __launch_bounds__(kThreads)
    ffn_backward_kernel(T* dgate, T* dup, const T* dh, const T* gate, const T* up,
                        std::int64_t vectors, std::int64_t F) {
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    const std::int64_t at = i * kWidth, b_at = kGated ? gate_place<Index>(i, kWidth, F) : at;
    float a[kWidth], b[kWidth], u[kWidth], gradient[kWidth], da[kWidth], db[kWidth], du[kWidth];
    if constexpr (kGated) load(a, gate + b_at - F);
    load(b, gate + b_at);
    load(u, up + at);
    load(gradient, dh + at);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float linear = kGated ? a[j] : 1.0f;
      const float s = sigmoid(b[j]), swish = b[j] * s;
      du[j] = gradient[j] * linear * swish;
      da[j] = gradient[j] * swish * u[j];
      db[j] = gradient[j] * linear * u[j] * (s * (1.0f + b[j] * (1.0f - s)));
    }
    if constexpr (kGated) store(dgate + b_at - F, da);
    store(dgate + b_at, db);
    store(dup + at, du);
  }
}

}  // namespace
}  // namespace cuda

void CudaOps::do_ffn_activation_forward(Tensor h, Tensor gate, Tensor up, FfnKind kind,
                                        std::int64_t num_rows) {
  const std::int64_t F = h.size(1);
  const bool gated = kind == FfnKind::gated_swiglu;
  cuda::with_storage(h.dtype, [&]<typename T>(std::type_identity<T>) {
    constexpr int kVectorWidth = cuda::kVector<T>;
    cuda::with_width<kVectorWidth>(
        cuda::can_vectorise(kVectorWidth, F, h, gate, up), [&](auto width) {
          constexpr int kWidth = width.value;
          const std::int64_t vectors = num_rows * F / kWidth;
          cuda::with_index(vectors, [&]<typename Index>(Index) {
            cuda::launch(stream_, cuda::blocks_for(vectors, cuda::kThreads),
                         gated ? cuda::ffn_forward_kernel<T, true, kWidth, Index>
                               : cuda::ffn_forward_kernel<T, false, kWidth, Index>,
                         h.as<T>(), gate.as<T>(), up.as<T>(), vectors, F);
          });
        });
  });
}

void CudaOps::do_ffn_activation_backward(Tensor dgate, Tensor dup, Tensor dh, Tensor gate,
                                         Tensor up, FfnKind kind, std::int64_t num_rows) {
  const std::int64_t F = dh.size(1);
  const bool gated = kind == FfnKind::gated_swiglu;
  cuda::with_storage(dh.dtype, [&]<typename T>(std::type_identity<T>) {
    constexpr int kVectorWidth = cuda::kVector<T>;
    cuda::with_width<kVectorWidth>(
        cuda::can_vectorise(kVectorWidth, F, dgate, dup, dh, gate, up), [&](auto width) {
          constexpr int kWidth = width.value;
          const std::int64_t vectors = num_rows * F / kWidth;
          cuda::with_index(vectors, [&]<typename Index>(Index) {
            cuda::launch(stream_, cuda::blocks_for(vectors, cuda::kThreads),
                         gated ? cuda::ffn_backward_kernel<T, true, kWidth, Index>
                               : cuda::ffn_backward_kernel<T, false, kWidth, Index>,
                         dgate.as<T>(), dup.as<T>(), dh.as<T>(), gate.as<T>(), up.as<T>(), vectors,
                         F);
          });
        });
  });
}

}  // namespace openmoe
