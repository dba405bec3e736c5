#include "core/cpu/cpu_ops.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "core/cpu/huge_pages.h"
#include "core/cpu/kernels.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

constexpr std::int64_t kAlignment = 64;
// Of copied rows; fewer are copied sooner by one thread.
constexpr std::int64_t kBytesWorthThreads = 1 << 17;

}  // namespace

std::unique_ptr<Ops> make_cpu_ops() {
  return std::make_unique<CpuOps>();
}

void* CpuOps::allocate_bytes(std::int64_t bytes) {
  OPENMOE_CHECK(bytes >= 0, bytes, " bytes");
  if (bytes >= cpu::kHugePageBytes) return cpu::map_huge_pages(bytes);
  void* data = std::aligned_alloc(
      kAlignment, static_cast<std::size_t>((std::max<std::int64_t>(bytes, 1) + kAlignment - 1) /
                                           kAlignment * kAlignment));
  if (data == nullptr) cpu::throw_out_of_memory(bytes);
  return data;
}

void CpuOps::free_bytes(void* data, std::int64_t bytes) {
  if (bytes >= cpu::kHugePageBytes)
    cpu::unmap_huge_pages(data, bytes);
  else
    std::free(data);
}

// All threads zero, since zeroing is also the first touch of an arena and fresh pages are dear.
void CpuOps::do_zero(Tensor x) {
  char* const data = static_cast<char*>(x.data);
  cpu::for_chunks(x.size_bytes(), cpu::kHugePageBytes,
                  [=](std::int64_t begin, std::int64_t end, std::int64_t) {
                    std::memset(data + begin, 0, static_cast<std::size_t>(end - begin));
                  });
}

void CpuOps::do_copy(Tensor dst, Tensor src) {
  char* const to = static_cast<char*>(dst.data);
  const char* const from = static_cast<const char*>(src.data);
  cpu::for_chunks(src.size_bytes(), cpu::kHugePageBytes,
                  [=](std::int64_t begin, std::int64_t end, std::int64_t) {
                    std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin));
                  });
}

void CpuOps::do_convert(Tensor dst, Tensor src) {
  const auto& convert = cpu::kernels_for(cpu::cpu_isa()).convert;
  const bool rounds = dst.dtype == DType::bf16;
  float* const wide = rounds ? src.as<float>() : dst.as<float>();
  BFloat16* const narrow = rounds ? dst.as<BFloat16>() : src.as<BFloat16>();
  constexpr std::int64_t kChunk = 8 * cpu::kChunkElements;
  cpu::for_chunks(src.num_elements(), kChunk,
                  [&](std::int64_t begin, std::int64_t end, std::int64_t) {
                    const std::int64_t n = end - begin;
                    if (rounds)
                      convert.to_bf16(narrow + begin, n, wide + begin, n, 1, n);
                    else
                      convert.to_f32(wide + begin, n, narrow + begin, n, 1, n);
                  });
}

void CpuOps::do_add_accumulate(Tensor y, Tensor x) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  float* const to = y.as<float>();
  const float* const from = x.as<float>();
  cpu::for_chunks(x.num_elements(), cpu::kChunkElements,
                  [&](std::int64_t begin, std::int64_t end, std::int64_t) {
                    kernels.add(to + begin, from + begin, end - begin);
                  });
}

void CpuOps::do_multiply(Tensor x, float factor) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  float* const data = x.as<float>();
  cpu::for_chunks(x.num_elements(), cpu::kChunkElements,
                  [&](std::int64_t begin, std::int64_t end, std::int64_t) {
                    kernels.scale(data + begin, factor, data + begin, end - begin);
                  });
}

void CpuOps::do_sums_of_squares(std::span<double> sums, std::span<const Tensor> xs) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const float* const data = xs[i].as<float>();
    const std::int64_t count = cpu::num_chunks(xs[i].num_elements(), cpu::kChunkElements);
    double* const parts = scratch_.get<double>(count);
    cpu::for_chunks(xs[i].num_elements(), cpu::kChunkElements,
                    [&](std::int64_t begin, std::int64_t end, std::int64_t index) {
                      parts[index] = kernels.sum_of_squares(data + begin, end - begin);
                    });
    sums[i] = std::accumulate(parts, parts + count, 0.0);
  }
}

// The rows of all stretches together are divided evenly, since their lengths may differ widely.
void CpuOps::do_copy_rows(Tensor dst, Tensor src, std::span<const RowStretch> stretches) {
  const std::int64_t row_bytes = src.row_bytes();
  std::int64_t rows = 0;
  for (const RowStretch& stretch : stretches) rows += stretch.num_rows;
  const std::int64_t chunk = std::max<std::int64_t>(1, kBytesWorthThreads / row_bytes);
  cpu::for_chunks(rows, chunk, [&](std::int64_t begin, std::int64_t end, std::int64_t) {
    std::int64_t first = 0;  // of the stretch, among the rows of all
    for (const RowStretch& stretch : stretches) {
      const std::int64_t from = std::max(begin - first, std::int64_t{0});
      const std::int64_t to = std::min(end - first, stretch.num_rows);
      first += stretch.num_rows;
      if (from >= to) continue;
      std::memcpy(static_cast<char*>(dst.data) + (stretch.to + from) * row_bytes,
                  static_cast<const char*>(src.data) + (stretch.from + from) * row_bytes,
                  static_cast<std::size_t>((to - from) * row_bytes));
    }
  });
}

void CpuOps::do_swap_leading_axes(Tensor dst, Tensor src) {
  const std::int64_t A = src.size(0), B = src.size(1), bytes = src.size(2) * size_of(src.dtype);
  char* const to = static_cast<char*>(dst.data);
  const char* const from = static_cast<const char*>(src.data);
  const std::int64_t chunk = std::max<std::int64_t>(1, kBytesWorthThreads / bytes);
  cpu::for_chunks(A * B, chunk, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t i = begin; i < end; ++i)
      std::memcpy(to + (i % B * A + i / B) * bytes, from + i * bytes,
                  static_cast<std::size_t>(bytes));
  });
}

void CpuOps::do_sum_pieces(Tensor y, Tensor pieces) {
  const std::int64_t P = pieces.size(0), n = y.size(0);
  float* const sum = y.as<float>();
  const float* const piece = pieces.as<float>();
  cpu::for_chunks(n, cpu::kChunkElements, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t i = begin; i < end; ++i) {
      float total = piece[i];
      for (std::int64_t p = 1; p < P; ++p) total += piece[p * n + i];
      sum[i] = total;
    }
  });
}

}  // namespace openmoe
