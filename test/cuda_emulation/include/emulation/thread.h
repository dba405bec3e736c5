// What a kernel sees of its own thread and block: indices, barriers, dynamic shared memory.
#pragma once

#include <cstddef>

#include "vector_types.h"

// Set by the scheduler before a thread of the grid runs; constant for that thread.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

namespace cuda_emulation {

// A place in the kernel's source, so that a barrier reached from two places is seen.
struct Site {
  const char* file;
  int line;
};

enum class BarrierKind { plain, count, all, any };
// Waits for every thread of the block; returns the reduction over the block of `predicate`.
int block_barrier(BarrierKind kind, int predicate, Site site);
void thread_fence();
[[noreturn]] void kernel_trap(Site site);

// The dynamic shared memory of the running block, 128-byte aligned.
void* dynamic_shared_memory();

}  // namespace cuda_emulation

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_emulation::block_barrier(cuda_emulation::BarrierKind::plain, 0, {file, line});
}
inline int __syncthreads_count(int predicate, const char* file = __builtin_FILE(),
                               int line = __builtin_LINE()) {
  return cuda_emulation::block_barrier(cuda_emulation::BarrierKind::count, predicate, {file, line});
}
inline int __syncthreads_and(int predicate, const char* file = __builtin_FILE(),
                             int line = __builtin_LINE()) {
  return cuda_emulation::block_barrier(cuda_emulation::BarrierKind::all, predicate, {file, line});
}
inline int __syncthreads_or(int predicate, const char* file = __builtin_FILE(),
                            int line = __builtin_LINE()) {
  return cuda_emulation::block_barrier(cuda_emulation::BarrierKind::any, predicate, {file, line});
}
inline void __threadfence() {
  cuda_emulation::thread_fence();
}
inline void __threadfence_block() {}
inline void __threadfence_system() {
  cuda_emulation::thread_fence();
}
[[noreturn]] inline void __trap(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_emulation::kernel_trap({file, line});
}
