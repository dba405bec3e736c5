#include "cuda/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// In f64: an angle of thousands of radians has no digits to lose.
__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(float* cosines, float* sines, std::int64_t length, std::int64_t half,
                      double base) {
  for (std::int64_t i = global_thread(); i < length * half; i += num_global_threads()) {
    const std::int64_t t = i / half, j = i % half;
    const double angle =
        static_cast<double>(t) * pow(base, -static_cast<double>(j) / static_cast<double>(half));
    cosines[i] = static_cast<float>(cos(angle));
    sines[i] = static_cast<float>(sin(angle));
  }
}

// Rotates the pairs (j, j + half) of every head, kWidth neighbouring j per thread. `sign` -1 is the
// inverse.
// hot: at least 6 blocks per SM
// bytes: 4 of 4 per element of x (bf16), 32 in flight per thread, 4 more from L2
template <typename X, int kWidth>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(X* x, const float* cosines, const float* sines, float sign, std::int64_t vectors,
                std::int64_t T, std::int64_t H, std::int64_t half) {
  const std::int64_t per_head = half / kWidth;
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    const std::int64_t head = i / per_head, j = i % per_head * kWidth, t = head / H % T;
    float cosine[kWidth], sine[kWidth], low[kWidth], high[kWidth];
    X* const at = x + head * 2 * half + j;
    load(cosine, cosines + t * half + j);
    load(sine, sines + t * half + j);
    load(low, at);
    load(high, at + half);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float a = low[k], b = high[k], s = sign * sine[k];
      low[k] = a * cosine[k] - b * s;
      high[k] = b * cosine[k] + a * s;
    }
    store(at, low);
    store(at + half, high);
  }
}

}  // namespace
}  // namespace cuda

// Keeps the longest table so far of one (half, base): a model has only one of these, and shorter
// rows read its beginning.
void CudaOps::prepare_rope_table(std::int64_t length, std::int64_t half, float base) {
  RopeTable& table = rope_table_;
  if (table.half == half && table.base == base && table.length >= length) return;
  OPENMOE_CUDA(cudaStreamSynchronize(stream_));
  OPENMOE_CUDA(cudaFree(table.cosines));
  table = {};
  const std::int64_t size = length * half;
  OPENMOE_CUDA(cudaMalloc(&table.cosines, static_cast<std::size_t>(2 * size) * sizeof(float)));
  table.sines = table.cosines + size;
  table.length = length;
  table.half = half;
  table.base = base;
  cuda::launch(stream_, cuda::blocks_for(size, cuda::kThreads), cuda::rope_table_kernel,
               table.cosines, table.sines, length, half, static_cast<double>(base));
}

void CudaOps::do_rope(Tensor x, float base, bool inverse) {
  const std::int64_t B = x.size(0), T = x.size(1), H = x.size(2), half = x.size(3) / 2;
  if (x.num_elements() == 0) return;
  prepare_rope_table(T, half, base);
  const Tensor sines{rope_table_.sines, DType::f32, Device::cuda, {}};
  cuda::with_storage(x.dtype, [&]<typename X>(std::type_identity<X>) {
    constexpr int kWidth = cuda::kVector<X>;
    cuda::with_width<kWidth>(cuda::can_vectorise(kWidth, half, x, sines), [&](auto width) {
      const std::int64_t vectors = B * T * H * (half / width.value);
      cuda::launch(stream_, cuda::blocks_for(vectors, cuda::kThreads),
                   cuda::rope_kernel<X, width.value>, x.as<X>(), rope_table_.cosines,
                   rope_table_.sines, inverse ? -1.0f : 1.0f, vectors, T, H, half);
    });
  });
}

}  // namespace openmoe
