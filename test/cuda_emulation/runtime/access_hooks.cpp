// Every access of a kernel to memory. The .cu files are compiled with -fsanitize=thread, which
// calls these functions instead of ThreadSanitizer's; and with
// -fsanitize=alignment,bounds,signed-integer-overflow, whose reports come here as well. This file
// is compiled without either. It must not call templates or inline functions that a .cu file may
// also contain: the linker could take the instrumented copy, which would call back.
#include <cstddef>
#include <cstdint>

#include "test/cuda_emulation/device_access.h"
#include "test/cuda_emulation/runtime/access.h"
#include "test/cuda_emulation/runtime/device_memory.h"
#include "test/cuda_emulation/runtime/host_memory.h"
#include "test/cuda_emulation/runtime/launch.h"
#include "test/cuda_emulation/runtime/scheduler.h"
#include "test/cuda_emulation/runtime/symbols.h"
#include "test/cuda_emulation/runtime/violation.h"

namespace cuda_emulation {

bool accesses_checked() {
#ifdef CUDA_EMULATION_CHECKS_ACCESSES
  return true;
#else
  return false;
#endif
}

namespace {

// Memory that a kernel may use besides device memory: its stack, shared memory, the program's
// constants, pinned memory.
void check_other(std::uintptr_t address, std::size_t bytes, const char* verb) {
  if (on_running_stack(address)) return;
  bool inside = false;
  if (in_dynamic_shared(address, bytes, &inside)) {
    if (!inside)
      violation(text(verb, " of ", bytes, " bytes outside the ", dynamic_shared_bytes(),
                     " bytes of dynamic shared memory"));
    return;
  }
  if (in_program_image(address)) return;
  if (host_memory::is_pinned(reinterpret_cast<const void*>(address), bytes)) return;
  if (address < 4096) violation(text(verb, " of ", bytes, " bytes through a null pointer"));
  violation(text(verb, " of ", bytes, " bytes at ", reinterpret_cast<void*>(address),
                 ", a host pointer in a kernel"));
}

inline bool is_device_address(std::uintptr_t address) {
  return address - g_access.base < 2 * kSpaceBytes && g_access.base != 0;
}

inline void on_read(const void* p, std::size_t bytes) {
  if (!t_watched) return;
  const Unwatched unwatched;
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (is_device_address(address))
    check_read(address, bytes);
  else
    check_other(address, bytes, "read");
}

inline void on_write(const void* p, std::size_t bytes) {
  if (!t_watched) return;
  const Unwatched unwatched;
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (is_device_address(address))
    check_write(address, bytes);
  else
    check_other(address, bytes, "write");
}

}  // namespace

void note_atomic(const void* p, int bytes) {
  if (!in_kernel()) violation("an atomic outside a kernel");
  check_alignment(p, static_cast<std::size_t>(bytes));
  if (!accesses_checked()) return;
  on_read(p, static_cast<std::size_t>(bytes));
  on_write(p, static_cast<std::size_t>(bytes));
}

void check_alignment(const void* p, std::size_t alignment) {
  if (reinterpret_cast<std::uintptr_t>(p) % alignment == 0) return;
  const Unwatched unwatched;
  violation(text("misaligned access: ", device_memory::describe(p), " is not aligned to ",
                 alignment, " bytes"));
}

}  // namespace cuda_emulation

#ifdef CUDA_EMULATION_CHECKS_ACCESSES

using cuda_emulation::on_read;
using cuda_emulation::on_write;

// The names are the compiler's.
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define CUDA_EMULATION_ACCESS(bytes)                     \
  void __tsan_read##bytes(void* p) {                     \
    on_read(p, bytes);                                   \
  }                                                      \
  void __tsan_write##bytes(void* p) {                    \
    on_write(p, bytes);                                  \
  }                                                      \
  void __tsan_unaligned_read##bytes(void* p) {           \
    on_read(p, bytes);                                   \
  }                                                      \
  void __tsan_unaligned_write##bytes(void* p) {          \
    on_write(p, bytes);                                  \
  }                                                      \
  void __tsan_volatile_read##bytes(void* p) {            \
    on_read(p, bytes);                                   \
  }                                                      \
  void __tsan_volatile_write##bytes(void* p) {           \
    on_write(p, bytes);                                  \
  }                                                      \
  void __tsan_unaligned_volatile_read##bytes(void* p) {  \
    on_read(p, bytes);                                   \
  }                                                      \
  void __tsan_unaligned_volatile_write##bytes(void* p) { \
    on_write(p, bytes);                                  \
  }
CUDA_EMULATION_ACCESS(1)
CUDA_EMULATION_ACCESS(2)
CUDA_EMULATION_ACCESS(4)
CUDA_EMULATION_ACCESS(8)
CUDA_EMULATION_ACCESS(16)
#undef CUDA_EMULATION_ACCESS

void __tsan_read_range(void* p, std::size_t bytes) {
  if (bytes != 0) on_read(p, bytes);
}
void __tsan_write_range(void* p, std::size_t bytes) {
  if (bytes != 0) on_write(p, bytes);
}

// Atomics of host code in a .cu file, such as the guard of a static variable: done as asked, in the
// strongest order.
#define CUDA_EMULATION_FETCH(bits, T, name, builtin)            \
  T __tsan_atomic##bits##_##name(volatile T* p, T value, int) { \
    return builtin(p, value, __ATOMIC_SEQ_CST);                 \
  }
#define CUDA_EMULATION_ATOMICS(bits, T)                                                            \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {                                         \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile T* p, T value, int) {                                  \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                                \
  CUDA_EMULATION_FETCH(bits, T, exchange, __atomic_exchange_n)                                     \
  CUDA_EMULATION_FETCH(bits, T, fetch_add, __atomic_fetch_add)                                     \
  CUDA_EMULATION_FETCH(bits, T, fetch_sub, __atomic_fetch_sub)                                     \
  CUDA_EMULATION_FETCH(bits, T, fetch_and, __atomic_fetch_and)                                     \
  CUDA_EMULATION_FETCH(bits, T, fetch_or, __atomic_fetch_or)                                       \
  CUDA_EMULATION_FETCH(bits, T, fetch_xor, __atomic_fetch_xor)                                     \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T value, int,      \
                                                    int) {                                         \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST,                \
                                       __ATOMIC_SEQ_CST);                                          \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T value, int, int) { \
    return __atomic_compare_exchange_n(p, expected, value, true, __ATOMIC_SEQ_CST,                 \
                                       __ATOMIC_SEQ_CST);                                          \
  }
CUDA_EMULATION_ATOMICS(8, std::uint8_t)
CUDA_EMULATION_ATOMICS(16, std::uint16_t)
CUDA_EMULATION_ATOMICS(32, std::uint32_t)
CUDA_EMULATION_ATOMICS(64, std::uint64_t)
#undef CUDA_EMULATION_ATOMICS
#undef CUDA_EMULATION_FETCH

void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

}  // extern "C"

#endif
