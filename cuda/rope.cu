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

// One or two tensors of one shape; a grid has a row of blocks for each.
template <typename X>
struct RopeTensors {
  X* x[2];
};

// Rotates the pairs (j, j + half) of every head, kWidth neighbouring j per thread. `sign` -1 is the
// inverse.
// hot: at least 6 blocks per SM
// bytes: 4 of 4 per element of x (bf16), 32 in flight per thread, 4 more from L2
template <typename X, int kWidth, typename Index>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(RopeTensors<X> tensors, const float* cosines, const float* sines, float sign,
                std::int64_t vectors, Index T, Index H, std::int64_t half) {
  X* const x = tensors.x[blockIdx.y];
  const Index per_head = static_cast<Index>(half / kWidth);
  for (std::int64_t i = global_thread(); i < vectors; i += num_global_threads()) {
    const Index index = static_cast<Index>(i);
    const std::int64_t head = index / per_head, j = index % per_head * kWidth,
                       t = index / per_head / H % T;
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

// `first`, and `second` where `count` is 2.
void CudaOps::rotate(Tensor first, Tensor second, std::int64_t count, float base, bool inverse) {
  const std::int64_t B = first.size(0), T = first.size(1), H = first.size(2),
                     half = first.size(3) / 2;
  if (first.num_elements() == 0) return;
  prepare_rope_table(T, half, base);
  const Tensor sines{rope_table_.sines, DType::f32, Device::cuda, {}};
  cuda::with_storage(first.dtype, [&]<typename X>(std::type_identity<X>) {
    constexpr int kWidth = cuda::kVector<X>;
    const bool vectorised = cuda::can_vectorise(kWidth, half, first, second, sines);
    const cuda::RopeTensors<X> tensors{{first.as<X>(), second.as<X>()}};
    cuda::with_width<kWidth>(vectorised, [&](auto width) {
      const std::int64_t vectors = B * T * H * (half / width.value);
      cuda::LaunchShape shape = cuda::blocks_for(vectors, cuda::kThreads);
      shape.blocks_y = count;
      cuda::with_index(vectors, [&]<typename Index>(Index) {
        cuda::launch(stream_, shape, cuda::rope_kernel<X, width.value, Index>, tensors,
                     rope_table_.cosines, rope_table_.sines, inverse ? -1.0f : 1.0f, vectors,
                     static_cast<Index>(T), static_cast<Index>(H), half);
      });
    });
  });
}

void CudaOps::do_rope(Tensor x, float base, bool inverse) {
  rotate(x, x, 1, base, inverse);
}

void CudaOps::do_rope_pair(Tensor q, Tensor k, float base, bool inverse) {
  rotate(q, k, 2, base, inverse);
}

}  // namespace openmoe
