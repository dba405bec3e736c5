// What is wrong with an access of the running operation to device memory.
#include "test/cuda_emulation/runtime/access.h"

#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/streams.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {
namespace {

void* pointer(std::uintptr_t address) {
  return reinterpret_cast<void*>(address);
}

[[noreturn]] void report_unaddressable(const char* verb, std::uintptr_t address,
                                       std::size_t bytes) {
  violation(text(verb, " of ", bytes,
                 " bytes outside memory: ", device_memory::describe(pointer(address)), ", by ",
                 describe_operation(g_access.current)));
}

[[noreturn]] void report_unordered(const char* what, std::uintptr_t address, std::uint32_t other) {
  violation(text(what, ": ", device_memory::describe(pointer(address)), "; ",
                 describe_operation(g_access.current), " is not ordered after ",
                 describe_operation(other), " by a stream, an event or a wait"));
}

std::uintptr_t address_of(std::uintptr_t granule) {
  return g_access.base + (granule << kGranuleShift);
}

bool is_unordered(std::uint32_t operation) {
  return operation >= kFirstOperation && operation != g_access.current && !ordered(operation);
}

}  // namespace

void check_read(std::uintptr_t address, std::size_t bytes, bool may_be_uninitialised) {
  const std::uintptr_t offset = device_memory::offset_of(address);
  const std::uintptr_t end = (offset + bytes - 1) >> kGranuleShift;
  for (std::uintptr_t granule = offset >> kGranuleShift; granule <= end; ++granule) {
    const std::uint32_t writer = g_access.writer[granule];
    if (writer == kUnaddressable) report_unaddressable("read", address, bytes);
    if (writer == kUninitialised && !may_be_uninitialised)
      violation(text("read of memory that nothing has written: ",
                     device_memory::describe(pointer(address_of(granule))), ", by ",
                     describe_operation(g_access.current)));
    if (is_unordered(writer))
      report_unordered("read of memory that another stream wrote", address_of(granule), writer);
    // A reader that nothing orders before this one stays: a later write on this stream comes after
    // this read, but perhaps not after that one. (Of two such readers one is forgotten.)
    if (!is_unordered(g_access.reader[granule])) g_access.reader[granule] = g_access.current;
  }
}

void check_write(std::uintptr_t address, std::size_t bytes) {
  const std::uintptr_t offset = device_memory::offset_of(address);
  const std::uintptr_t end = (offset + bytes - 1) >> kGranuleShift;
  for (std::uintptr_t granule = offset >> kGranuleShift; granule <= end; ++granule) {
    const std::uint32_t writer = g_access.writer[granule];
    const std::uint32_t reader = g_access.reader[granule];
    if (writer == kUnaddressable) report_unaddressable("write", address, bytes);
    if (is_unordered(writer))
      report_unordered("write over memory that another stream wrote", address_of(granule), writer);
    if (is_unordered(reader))
      report_unordered("write over memory that another stream reads", address_of(granule), reader);
    g_access.writer[granule] = g_access.current;
  }
}

}  // namespace cuda_emulation
