// Runs the threads of a block as fibers of one host thread. A thread runs until it waits at a
// barrier or a warp operation; which thread runs next depends on the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "vector_types.h"

namespace cuda_emulation {

struct Grid {
  const char* kernel_name = "";
  dim3 grid_size;
  dim3 block_size;
  void (*invoke)(const void*) = nullptr;
  const void* arguments = nullptr;
};

// Runs one block; returns the message of the fault that ended it, or "".
std::string run_block(const Grid& grid, uint3 block);

// True on the host thread that runs a kernel, while it does.
bool in_kernel();
// The same, but false while the runtime itself works: it may use code that is instrumented like a
// kernel's.
extern constinit thread_local bool t_watched;
class Unwatched {
 public:
  Unwatched() : before_(t_watched) { t_watched = false; }
  ~Unwatched() { t_watched = before_; }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;

 private:
  bool before_;
};
// Leaves the running thread of the kernel for good and ends the block.
[[noreturn]] void stop_kernel(const std::string& message);
// "kernel rms_norm, block (0, 0, 0), thread (3, 0, 0)"
std::string describe_thread();
// True for the addresses of the stack that the running thread uses.
bool on_running_stack(std::uintptr_t address);
bool in_guard_of_running_stack(std::uintptr_t address);
// Parts of a launch since the start of the process.
std::int64_t num_switches();
// True when a fence was executed in this launch: blocks may then pass values to each other.
bool fence_used();
void begin_launch();

// Pseudo-random numbers of the schedule; 0 while the seed is 0.
void seed_schedule(std::uint64_t seed);
std::uint64_t schedule_random();

}  // namespace cuda_emulation
