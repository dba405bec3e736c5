// Scratch memory of a thread for packed operands: allocated at first use, on huge pages where the
// system gives them, and kept until the thread ends, so that a training step allocates nothing.
#pragma once

#include <cstdint>

namespace openmoe::cpu {

enum class ThreadBuffer : std::uint8_t { gemm, attention };
inline constexpr int kNumThreadBuffers = 2;

// At least num_floats floats of the calling thread, 64-byte aligned, with no particular contents;
// the same memory at each call unless a larger size forces a new block. Null when the system has no
// memory (never throws: it is called inside OpenMP regions; see throw_out_of_buffers).
float* thread_buffer(ThreadBuffer which, std::int64_t num_floats) noexcept;

// RuntimeFault that names the operation that got no buffer.
[[noreturn]] void throw_out_of_buffers(const char* operation);

}  // namespace openmoe::cpu
