// State that is read on every memory access of a kernel: plain data, so that the hooks stay small.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

// Device memory is one range of addresses, mapped twice. Programs hold addresses of the first
// mapping, which is never accessible; at a launch the pointers among the arguments move to the
// second one. So a host program that follows a device pointer faults, at no cost per launch.
inline constexpr std::uintptr_t kSpaceBytes = std::uintptr_t{1} << 40;

// One word of shadow per two bytes of device memory: the operation that wrote it last, or one of
// these.
inline constexpr std::uint32_t kUnaddressable = 0;
inline constexpr std::uint32_t kUninitialised = 1;
inline constexpr std::uint32_t kFirstOperation = 2;
inline constexpr int kGranuleShift = 1;

struct OperationRecord {
  std::uint32_t stream;
  std::uint32_t tick;  // place in the stream
  const char* name;
};

struct AccessState {
  std::uintptr_t base = 0;               // of the first mapping; the second follows
  std::uint32_t* writer = nullptr;       // shadow: last write
  std::uint32_t* reader = nullptr;       // shadow: a read that a write must come after; 0: none
  std::uint32_t current = 0;             // the running operation
  const std::uint32_t* clock = nullptr;  // per stream: what the running operation is ordered after
  std::size_t clock_size = 0;
  const OperationRecord* operations = nullptr;
};
extern AccessState g_access;

// True when the operation `id` is ordered before the running one.
inline bool ordered(std::uint32_t id) {
  const OperationRecord& record = g_access.operations[id];
  return record.stream < g_access.clock_size && record.tick <= g_access.clock[record.stream];
}

// Reports what is wrong with the access of the running operation to `bytes` at `address` (either
// mapping), if anything is, and records it. `may_be_uninitialised`: a copy, which passes that on.
void check_read(std::uintptr_t address, std::size_t bytes, bool may_be_uninitialised = false);
void check_write(std::uintptr_t address, std::size_t bytes);

}  // namespace cuda_emulation
