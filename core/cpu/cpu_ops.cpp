#include "core/cpu/cpu_ops.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/cpu/kernels.h"
#include "core/cpu/parallel.h"
#include "core/cpu/row_kernels.h"

namespace openmoe {
namespace {

// From this size on, blocks are mapped on their own and offered to the kernel for huge pages:
// touching fresh 4 KiB pages is several times slower than the memory itself.
constexpr std::int64_t kHugePageBytes = std::int64_t{2} << 20;

constexpr std::int64_t round_up(std::int64_t bytes, std::int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

[[noreturn]] void out_of_memory(std::int64_t bytes) {
  throw RuntimeFault(concat("cannot allocate ", bytes, " bytes (",
                            static_cast<double>(bytes) / (1 << 30),
                            " GiB) of memory: ", std::strerror(errno)));
}

// An anonymous mapping of whole huge pages, aligned to them: the ends that the alignment leaves
// over are given back.
void* map_huge(std::int64_t bytes) {
  const std::int64_t size = round_up(bytes, kHugePageBytes);
  const std::int64_t reserved = size + kHugePageBytes;
  void* mapped = mmap(nullptr, static_cast<std::size_t>(reserved), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) out_of_memory(bytes);
  char* const begin = static_cast<char*>(mapped);
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(begin));
  const std::int64_t head = round_up(address, kHugePageBytes) - address;
  const std::int64_t tail = reserved - head - size;
  if (head > 0) munmap(begin, static_cast<std::size_t>(head));
  if (tail > 0) munmap(begin + head + size, static_cast<std::size_t>(tail));
  // Only advice: a kernel without transparent huge pages refuses, and small pages serve as well,
  // slower.
  static_cast<void>(madvise(begin + head, static_cast<std::size_t>(size), MADV_HUGEPAGE));
  return begin + head;
}

}  // namespace

std::unique_ptr<Ops> make_cpu_ops() {
  return std::make_unique<CpuOps>();
}

void* CpuOps::allocate_bytes(std::int64_t bytes) {
  OPENMOE_CHECK(bytes >= 0, bytes, " bytes");
  if (bytes >= kHugePageBytes) return map_huge(bytes);
  void* data = std::aligned_alloc(
      64, static_cast<std::size_t>(round_up(std::max<std::int64_t>(bytes, 1), 64)));
  if (data == nullptr) out_of_memory(bytes);
  return data;
}

void CpuOps::free_bytes(void* data, std::int64_t bytes) {
  if (bytes >= kHugePageBytes)
    munmap(data, static_cast<std::size_t>(round_up(bytes, kHugePageBytes)));
  else
    std::free(data);
}

// All threads zero, since zeroing is also the first touch of an arena and fresh pages are dear.
void CpuOps::do_zero(Tensor x) {
  char* const data = static_cast<char*>(x.data);
  cpu::for_chunks(x.size_bytes(), kHugePageBytes,
                  [=](std::int64_t begin, std::int64_t end, std::int64_t) {
                    std::memset(data + begin, 0, static_cast<std::size_t>(end - begin));
                  });
}

void CpuOps::do_copy(Tensor dst, Tensor src) {
  char* const to = static_cast<char*>(dst.data);
  const char* const from = static_cast<const char*>(src.data);
  cpu::for_chunks(src.size_bytes(), kHugePageBytes,
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
