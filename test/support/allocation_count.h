// Counts every allocation of the program, to see that a step makes none. To be included by one
// source file of a program: it replaces the global operators new and delete.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_THREAD__)
#define OPENMOE_COUNT_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define OPENMOE_COUNT_ALLOCATIONS 0
#endif
#endif
#ifndef OPENMOE_COUNT_ALLOCATIONS
#define OPENMOE_COUNT_ALLOCATIONS 1
#endif

namespace openmoe::test {

// Stays 0 under ThreadSanitizer, whose own operators cannot be replaced.
inline std::int64_t g_num_allocations = 0;

}  // namespace openmoe::test

#if OPENMOE_COUNT_ALLOCATIONS

// Not inlined, or the compiler takes the pair of new and free for a mistake.
[[gnu::noinline]] void* operator new(std::size_t size) {
  __atomic_fetch_add(&openmoe::test::g_num_allocations, 1, __ATOMIC_RELAXED);
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  __atomic_fetch_add(&openmoe::test::g_num_allocations, 1, __ATOMIC_RELAXED);
  return std::malloc(size == 0 ? 1 : size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

#endif
