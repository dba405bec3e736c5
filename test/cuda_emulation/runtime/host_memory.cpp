#include "test/cuda_emulation/runtime/host_memory.h"

#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <vector>

#include "test/cuda_emulation/runtime/access.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation::host_memory {
namespace {

struct Range {
  std::size_t bytes = 0;
  bool allocated = false;  // by the runtime, not only registered
};

struct Transfer {
  std::uint32_t operation = 0;
  std::uint32_t stream = 0;
  std::uint32_t tick = 0;
  bool to_host = false;
  unsigned char* host = nullptr;
  std::vector<unsigned char> bytes;  // what arrives, or what must still be there
};

struct State {
  std::map<std::uintptr_t, Range> pinned;
  std::list<Transfer> transfers;  // oldest first
};

State& state() {
  static State* instance = new State;
  return *instance;
}

bool covers(const Clock& clock, const Transfer& transfer) {
  return transfer.stream < clock.size() && transfer.tick <= clock[transfer.stream];
}

bool overlaps(const Transfer& transfer, const void* p, std::size_t size) {
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  const auto other = reinterpret_cast<std::uintptr_t>(transfer.host);
  return begin < other + transfer.bytes.size() && other < begin + size;
}

void finish(const Transfer& transfer) {
  if (transfer.to_host) {
    std::memcpy(transfer.host, transfer.bytes.data(), transfer.bytes.size());
  } else if (std::memcmp(transfer.host, transfer.bytes.data(), transfer.bytes.size()) != 0) {
    violation(text("the host changed pinned memory at ", static_cast<void*>(transfer.host),
                   " before it had waited for ", describe_operation(transfer.operation),
                   ", which reads it"));
  }
}

void add(unsigned char* host, const void* bytes, std::size_t size, bool to_host,
         const Operation& operation) {
  const OperationRecord& record = g_access.operations[operation.id()];
  Transfer transfer;
  transfer.operation = operation.id();
  transfer.stream = record.stream;
  transfer.tick = record.tick;
  transfer.to_host = to_host;
  transfer.host = host;
  const auto* first = static_cast<const unsigned char*>(bytes);
  transfer.bytes.assign(first, first + size);
  state().transfers.push_back(std::move(transfer));
}

void require_settled(const void* p, std::size_t size, const char* call) {
  for (const Transfer& transfer : state().transfers)
    if (overlaps(transfer, p, size))
      violation(
          text(call, " of memory that ", describe_operation(transfer.operation), " still uses"));
}

}  // namespace

void* allocate_pinned(std::size_t bytes) {
  void* p = std::aligned_alloc(4096, (bytes + 4095) & ~std::size_t{4095});
  if (p == nullptr) return nullptr;
  std::memset(p, 0xff, bytes);
  state().pinned[reinterpret_cast<std::uintptr_t>(p)] = {bytes, true};
  return p;
}

bool free_pinned(void* p) {
  const auto found = state().pinned.find(reinterpret_cast<std::uintptr_t>(p));
  if (found == state().pinned.end() || !found->second.allocated) return false;
  require_settled(p, found->second.bytes, "cudaFreeHost");
  state().pinned.erase(found);
  std::free(p);
  return true;
}

bool register_pinned(void* p, std::size_t bytes) {
  if (bytes == 0 || is_pinned(p, 1) || is_pinned(static_cast<char*>(p) + bytes - 1, 1))
    return false;
  state().pinned[reinterpret_cast<std::uintptr_t>(p)] = {bytes, false};
  return true;
}

bool unregister_pinned(void* p) {
  const auto found = state().pinned.find(reinterpret_cast<std::uintptr_t>(p));
  if (found == state().pinned.end() || found->second.allocated) return false;
  require_settled(p, found->second.bytes, "cudaHostUnregister");
  state().pinned.erase(found);
  return true;
}

bool is_pinned(const void* p, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const auto& all = state().pinned;
  auto next = all.upper_bound(address);
  if (next == all.begin()) return false;
  const auto& [begin, range] = *std::prev(next);
  return address - begin <= range.bytes && bytes <= range.bytes - (address - begin);
}

void deliver_later(void* dst, const void* bytes, std::size_t size, const Operation& operation) {
  auto& all = state().transfers;
  for (auto it = all.begin(); it != all.end();) {
    if (it->to_host || !overlaps(*it, dst, size)) {
      ++it;
      continue;
    }
    if (!ordered(it->operation))
      violation(text(describe_operation(operation.id()), " writes pinned memory that ",
                     describe_operation(it->operation), " may still read"));
    finish(*it);
    it = all.erase(it);
  }
  add(static_cast<unsigned char*>(dst), bytes, size, true, operation);
  std::memset(dst, 0xff, size);
}

void keep_unchanged(const void* src, std::size_t size, const Operation& operation) {
  add(static_cast<unsigned char*>(const_cast<void*>(src)), src, size, false, operation);
}

void settle_for_running(const void* p, std::size_t size) {
  auto& all = state().transfers;
  for (auto it = all.begin(); it != all.end();) {
    if (it->to_host && overlaps(*it, p, size) && ordered(it->operation)) {
      finish(*it);
      it = all.erase(it);
    } else {
      ++it;
    }
  }
}

void settle(const Clock& clock) {
  auto& all = state().transfers;
  for (auto it = all.begin(); it != all.end();) {
    if (!covers(clock, *it)) {
      ++it;
      continue;
    }
    const Transfer done = std::move(*it);
    it = all.erase(it);
    finish(done);
  }
}

}  // namespace cuda_emulation::host_memory
