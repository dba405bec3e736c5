// Rows before and after they travel between ranks: copies, and sums of what came from several.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Stretches that fit in the arguments of one kernel.
constexpr int kStretchBatch = 64;

struct StretchBatch {
  RowStretch stretches[kStretchBatch];
};

struct alignas(16) Words4 {
  std::uint32_t at[4];
};

// Block (x, stretch); `row_words` words per row.
// hot: at least 6 blocks per SM
// bytes: 4 of 4 per element of dst (bf16), 16 in flight per thread
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(Word* dst, const Word* src, StretchBatch batch, std::int64_t row_words) {
  const RowStretch stretch = batch.stretches[blockIdx.y];
  Word* const to = dst + stretch.to * row_words;
  const Word* const from = src + stretch.from * row_words;
  for (std::int64_t i = global_thread(); i < stretch.num_rows * row_words;
       i += num_global_threads())
    to[i] = from[i];
}

// dst (B, A, words) = src (A, B, words)
// hot: at least 4 blocks per SM
// bytes: 4 of 4 per element of dst (bf16), 16 in flight per thread
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    swap_leading_axes_kernel(Word* dst, const Word* src, std::int64_t A, std::int64_t B,
                             std::int64_t words) {
  for (std::int64_t i = global_thread(); i < A * B * words; i += num_global_threads()) {
    const std::int64_t row = i / words, a = row / B, b = row % B;
    dst[(b * A + a) * words + i % words] = src[i];
  }
}

// hot: at least 6 blocks per SM
// bytes: 12 of 12 per element of y (2 pieces), 8 in flight per thread
__global__ void __launch_bounds__(kThreads)
    sum_pieces_kernel(float* y, const float* pieces, std::int64_t num_pieces, std::int64_t n) {
  for (std::int64_t i = global_thread(); i < n; i += num_global_threads()) {
    float total = pieces[i];
    for (std::int64_t p = 1; p < num_pieces; ++p) total += pieces[p * n + i];
    y[i] = total;
  }
}

// Calls body(Word{}) with the widest word that rows of `row_bytes` bytes are made of.
template <typename Body>
void with_word(const Tensor& a, const Tensor& b, std::int64_t row_bytes, Body&& body) {
  const auto fits = [&](std::int64_t bytes) {
    return row_bytes % bytes == 0 && reinterpret_cast<std::uintptr_t>(a.data) % bytes == 0 &&
           reinterpret_cast<std::uintptr_t>(b.data) % bytes == 0;
  };
  if (fits(16))
    body(Words4{});
  else if (fits(4))
    body(std::uint32_t{});
  else if (fits(2))
    body(std::uint16_t{});
  else
    body(std::uint8_t{});
}

}  // namespace
}  // namespace cuda

void CudaOps::do_copy_rows(Tensor dst, Tensor src, std::span<const RowStretch> stretches) {
  const std::int64_t row_bytes = src.row_bytes();
  for (std::size_t first = 0; first < stretches.size(); first += cuda::kStretchBatch) {
    cuda::StretchBatch batch{};
    const std::size_t count = std::min<std::size_t>(cuda::kStretchBatch, stretches.size() - first);
    std::int64_t longest = 0;
    for (std::size_t i = 0; i < count; ++i) {
      batch.stretches[i] = stretches[first + i];
      longest = std::max(longest, stretches[first + i].num_rows);
    }
    cuda::with_word(dst, src, row_bytes, [&](auto word) {
      using Word = decltype(word);
      const std::int64_t row_words = row_bytes / static_cast<std::int64_t>(sizeof(Word));
      cuda::LaunchShape shape = cuda::blocks_for(longest * row_words, cuda::kThreads);
      shape.blocks_y = static_cast<std::int64_t>(count);
      cuda::launch(stream_, shape, cuda::copy_rows_kernel<Word>, static_cast<Word*>(dst.data),
                   static_cast<const Word*>(src.data), batch, row_words);
    });
  }
}

void CudaOps::do_swap_leading_axes(Tensor dst, Tensor src) {
  const std::int64_t A = src.size(0), B = src.size(1), bytes = src.size(2) * size_of(src.dtype);
  cuda::with_word(dst, src, bytes, [&](auto word) {
    using Word = decltype(word);
    const std::int64_t words = bytes / static_cast<std::int64_t>(sizeof(Word));
    cuda::launch(stream_, cuda::blocks_for(A * B * words, cuda::kThreads),
                 cuda::swap_leading_axes_kernel<Word>, static_cast<Word*>(dst.data),
                 static_cast<const Word*>(src.data), A, B, words);
  });
}

void CudaOps::do_sum_pieces(Tensor y, Tensor pieces) {
  const std::int64_t n = y.size(0);
  cuda::launch(stream_, cuda::blocks_for(n, cuda::kThreads), cuda::sum_pieces_kernel, y.as<float>(),
               pieces.as<float>(), pieces.size(0), n);
}

}  // namespace openmoe
