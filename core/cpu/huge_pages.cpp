#include "core/cpu/huge_pages.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::cpu {
namespace {

std::size_t whole_pages(std::int64_t bytes) {
  return static_cast<std::size_t>((bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes);
}

}  // namespace

void* map_huge_pages(std::int64_t bytes) {
  constexpr auto kPage = static_cast<std::size_t>(kHugePageBytes);
  const std::size_t size = whole_pages(bytes);
  // One page more, so that the start can be moved to a boundary; the ends are given back.
  void* const mapped =
      mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw_out_of_memory(bytes);
  const std::size_t head = (kPage - reinterpret_cast<std::uintptr_t>(mapped) % kPage) % kPage;
  char* const begin = static_cast<char*>(mapped) + head;
  if (head > 0) munmap(mapped, head);
  munmap(begin + size, kPage - head);
  // Only advice: a kernel without transparent huge pages refuses, and small pages serve as well,
  // slower. A small block would only waste what rounding up adds.
  if (bytes >= kHugePageBytes) static_cast<void>(madvise(begin, size, MADV_HUGEPAGE));
  return begin;
}

void unmap_huge_pages(void* data, std::int64_t bytes) {
  munmap(data, whole_pages(bytes));
}

void throw_out_of_memory(std::int64_t bytes) {
  throw RuntimeFault(concat("cannot allocate ", bytes, " bytes (",
                            static_cast<double>(bytes) / (1 << 30),
                            " GiB) of memory: ", std::strerror(errno)));
}

}  // namespace openmoe::cpu
