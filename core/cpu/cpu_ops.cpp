#include "core/cpu/cpu_ops.h"

#include <cstdlib>
#include <cstring>

#include "core/cpu/huge_pages.h"
#include "core/cpu/kernels.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

constexpr std::int64_t kAlignment = 64;

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

double CpuOps::do_sum_of_squares(Tensor x) {
  const auto& kernels = cpu::row_kernels(cpu::cpu_isa());
  const float* const data = x.as<float>();
  const std::int64_t count = cpu::num_chunks(x.num_elements(), cpu::kChunkElements);
  double* const sums = scratch_.get<double>(count);
  cpu::for_chunks(x.num_elements(), cpu::kChunkElements,
                  [&](std::int64_t begin, std::int64_t end, std::int64_t index) {
                    sums[index] = kernels.sum_of_squares(data + begin, end - begin);
                  });
  double total = 0.0;
  for (std::int64_t i = 0; i < count; ++i) total += sums[i];
  return total;
}

}  // namespace openmoe
