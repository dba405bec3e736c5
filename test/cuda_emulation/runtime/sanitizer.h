// AddressSanitizer's view of device memory and of the fibers' stacks; nothing in other builds.
#pragma once

#include <cstddef>
#include <cstring>

// GCC says so by a macro, clang by a feature.
#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATION_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATION_ASAN
#endif
#endif

#ifdef CUDA_EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {

#ifdef CUDA_EMULATION_ASAN
inline void poison(const void* p, std::size_t bytes) {
  __asan_poison_memory_region(p, bytes);
}
inline void unpoison(const void* p, std::size_t bytes) {
  __asan_unpoison_memory_region(p, bytes);
}
inline void begin_switch(void** save, const void* stack, std::size_t bytes) {
  __sanitizer_start_switch_fiber(save, stack, bytes);
}
inline void end_switch(void* saved, const void** old_stack, std::size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(saved, old_stack, old_bytes);
}
// Of a variable as its symbol has it, whose size may be that with the sanitizer's own room behind.
__attribute__((no_sanitize("address"))) inline void fill_variable(void* p, unsigned char value,
                                                                  std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(p)[i] = value;
}
#else
inline void fill_variable(void* p, unsigned char value, std::size_t bytes) {
  std::memset(p, value, bytes);
}
inline void poison(const void*, std::size_t) {}
inline void unpoison(const void*, std::size_t) {}
inline void begin_switch(void**, const void*, std::size_t) {}
inline void end_switch(void*, const void**, std::size_t*) {}
#endif

}  // namespace cuda_emulation
