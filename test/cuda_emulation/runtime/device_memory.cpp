#include "test/cuda_emulation/runtime/device_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "test/cuda_emulation/runtime/fault_handler.h"
#include "test/cuda_emulation/runtime/sanitizer.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {

AccessState g_access;

namespace {

constexpr std::uintptr_t kAlignment = 512;  // cudaMalloc gives 256 at least
constexpr std::uintptr_t kGuardBytes = 64 << 10;
constexpr std::uintptr_t kPage = 4096;
// Below this a range is cleared by writing; above it its pages are given back.
constexpr std::size_t kDropBytes = 64 << 10;

struct Memory {
  int file = -1;
  std::uintptr_t next =
      kGuardBytes;  // offset of the next allocation; addresses are never used twice
  std::map<std::uintptr_t, Allocation> allocations;  // by offset, freed ones too
  std::map<int, std::size_t> used;
  std::size_t live = 0;
  std::int64_t count = 0;
};

Memory& memory() {
  static Memory* instance =
      new Memory;  // lives until the process ends: kernels may run in destructors
  return *instance;
}

[[noreturn]] void give_up(const char* call) {
  std::perror(call);
  std::abort();
}

void* map(std::size_t bytes, int protection, int flags, int file) {
  void* p = mmap(nullptr, bytes, protection, flags | MAP_NORESERVE, file, 0);
  if (p == MAP_FAILED) give_up("mmap of emulated device memory");
  return p;
}

// Maps the address space on the first allocation.
void prepare() {
  Memory& m = memory();
  if (m.file >= 0) return;
  m.file = memfd_create("emulated device memory", MFD_CLOEXEC);
  if (m.file < 0 || ftruncate(m.file, static_cast<off_t>(kSpaceBytes)) != 0)
    give_up("memfd_create");
  auto base = reinterpret_cast<std::uintptr_t>(
      map(3 * kSpaceBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  base = (base + kSpaceBytes - 1) & ~(kSpaceBytes - 1);
  for (int half = 0; half < 2; ++half) {
    void* place = reinterpret_cast<void*>(base + half * kSpaceBytes);
    const int protection = half == 0 ? PROT_NONE : PROT_READ | PROT_WRITE;
    if (mmap(place, kSpaceBytes, protection, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, m.file, 0) !=
        place)
      give_up("mmap of emulated device memory");
  }
  const std::size_t shadow_bytes = (kSpaceBytes >> kGranuleShift) * sizeof(std::uint32_t);
  g_access.writer = static_cast<std::uint32_t*>(
      map(shadow_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  g_access.reader = static_cast<std::uint32_t*>(
      map(shadow_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  g_access.base = base;
}

std::size_t granules(std::size_t bytes) {
  return (bytes + 1) >> kGranuleShift;
}

// Zeroes shadow words, giving whole pages back.
void clear_shadow(std::uint32_t* first, std::size_t count) {
  const std::size_t bytes = count * sizeof(std::uint32_t);
  if (bytes < kDropBytes) {
    std::memset(first, 0, bytes);
    return;
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(first);
  const std::uintptr_t end = begin + bytes;
  const std::uintptr_t inner_begin = (begin + kPage - 1) & ~(kPage - 1);
  const std::uintptr_t inner_end = end & ~(kPage - 1);
  std::memset(first, 0, inner_begin - begin);
  if (madvise(reinterpret_cast<void*>(inner_begin), inner_end - inner_begin, MADV_DONTNEED) != 0)
    give_up("madvise");
  std::memset(reinterpret_cast<void*>(inner_end), 0, end - inner_end);
}

}  // namespace

namespace device_memory {

void* host_view(const void* p) {
  const std::uintptr_t offset = offset_of(reinterpret_cast<std::uintptr_t>(p));
  return reinterpret_cast<void*>(g_access.base + kSpaceBytes + offset);
}

void* allocate(std::size_t bytes, int device) {
  prepare();
  install_fault_handler();
  Memory& m = memory();
  const std::size_t rounded = (bytes + kAlignment - 1) & ~(kAlignment - 1);
  if (rounded < bytes || m.used[device] + rounded > hardware().memory_bytes) return nullptr;
  if (rounded + 2 * kGuardBytes > kSpaceBytes - m.next) return nullptr;
  Allocation made;
  made.begin = g_access.base + m.next;
  made.bytes = bytes;
  made.device = device;
  made.number = ++m.count;
  m.allocations.emplace(m.next, made);
  std::uint32_t* shadow = g_access.writer + (m.next >> kGranuleShift);
  for (std::size_t i = 0; i < granules(bytes); ++i) shadow[i] = kUninitialised;
  // A NaN in every floating point type and -1 in every signed integer, for accesses that are not
  // checked one by one.
  std::memset(host_view(reinterpret_cast<void*>(made.begin)), 0xff, rounded);
  poison(host_view(reinterpret_cast<void*>(made.begin + bytes)), rounded - bytes);
  m.used[device] += rounded;
  m.live += bytes;
  m.next += (rounded + 2 * kGuardBytes - 1) & ~(kGuardBytes - 1);
  return reinterpret_cast<void*>(made.begin);
}

void release(const Allocation& allocation) {
  Memory& m = memory();
  const std::uintptr_t offset = offset_of(allocation.begin);
  const std::size_t rounded = (allocation.bytes + kAlignment - 1) & ~(kAlignment - 1);
  Allocation& record = m.allocations.at(offset);
  record.live = false;
  m.used[record.device] -= rounded;
  m.live -= record.bytes;
  void* view = host_view(reinterpret_cast<void*>(allocation.begin));
  unpoison(view, rounded);
  // The 64 KiB steps of `next` keep neighbours out of the pages that are given back.
  const std::size_t whole_pages = (rounded + kPage - 1) & ~(kPage - 1);
  if (fallocate(m.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(whole_pages)) != 0)
    give_up("fallocate");
  poison(view, rounded);
  clear_shadow(g_access.writer + (offset >> kGranuleShift), granules(record.bytes));
  clear_shadow(g_access.reader + (offset >> kGranuleShift), granules(record.bytes));
}

const Allocation* starting_at(const void* p) {
  if (!contains(p)) return nullptr;
  const auto& all = memory().allocations;
  const auto found = all.find(offset_of(reinterpret_cast<std::uintptr_t>(p)));
  return found == all.end() ? nullptr : &found->second;
}

const Allocation* around(const void* p) {
  if (!contains(p)) return nullptr;
  const auto& all = memory().allocations;
  auto next = all.upper_bound(offset_of(reinterpret_cast<std::uintptr_t>(p)));
  return next == all.begin() ? nullptr : &std::prev(next)->second;
}

std::size_t used_bytes(int device) {
  return memory().used[device];
}
std::size_t live_bytes() {
  return memory().live;
}
std::int64_t num_allocations() {
  return memory().count;
}

void set_first_mapping_accessible(bool accessible) {
  void* first = reinterpret_cast<void*>(g_access.base);
  if (mprotect(first, memory().next, accessible ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
    give_up("mprotect");
}

std::string describe(const void* p) {
  if (!contains(p)) return text("host address ", p);
  const Allocation* a = around(p);
  if (a == nullptr) return text("device address ", p, " before the first allocation");
  const std::uintptr_t at = offset_of(reinterpret_cast<std::uintptr_t>(p)) - offset_of(a->begin);
  const std::string name = text(a->live ? "" : "FREED ", "allocation ", a->number, " of ", a->bytes,
                                " bytes on device ", a->device);
  if (at < a->bytes) return text("byte ", at, " of ", name);
  return text(at - a->bytes, " bytes behind the end of ", name);
}

void check_range(const void* p, std::size_t bytes, int device, const char* what) {
  if (bytes == 0) return;
  if (p == nullptr)
    violation(text(what, " is a null pointer, for ", bytes, " bytes of device memory"));
  if (!contains(p))
    violation(text(what, " is ", p, ", a host pointer where device memory of ", bytes,
                   " bytes is needed"));
  const Allocation* a = around(p);
  const std::uintptr_t at =
      a == nullptr ? 0 : offset_of(reinterpret_cast<std::uintptr_t>(p)) - offset_of(a->begin);
  if (a == nullptr || !a->live || at > a->bytes || bytes > a->bytes - at)
    violation(text(what, ": ", bytes, " bytes at ", describe(p)));
  if (a->device != device)
    violation(text(what, ": memory of device ", a->device, " used on device ", device));
}

void read_range(const void* p, std::size_t bytes, int device, const char* what,
                bool may_be_uninitialised) {
  check_range(p, bytes, device, what);
  if (bytes != 0 && accesses_checked())
    check_read(reinterpret_cast<std::uintptr_t>(p), bytes, may_be_uninitialised);
}

void write_range(const void* p, std::size_t bytes, int device, const char* what) {
  check_range(p, bytes, device, what);
  if (bytes != 0 && accesses_checked()) check_write(reinterpret_cast<std::uintptr_t>(p), bytes);
}

void copy_range(const void* dst, const void* src, std::size_t bytes) {
  if (!accesses_checked()) return;
  const std::uintptr_t to = offset_of(reinterpret_cast<std::uintptr_t>(dst)) >> kGranuleShift;
  const std::uintptr_t from = offset_of(reinterpret_cast<std::uintptr_t>(src)) >> kGranuleShift;
  for (std::size_t i = 0; i < granules(bytes); ++i)
    g_access.writer[to + i] =
        g_access.writer[from + i] == kUninitialised ? kUninitialised : g_access.current;
}

}  // namespace device_memory

const void* peek(const void* device_pointer) {
  return device_memory::host_view(device_pointer);
}

}  // namespace cuda_emulation
