#include "core/cpu/kernels_buffer.h"

#include <sys/mman.h>

#include <array>
#include <cstdlib>
#include <string>

#include "core/base/error.h"

namespace openmoe::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

class Block {
 public:
  Block() = default;
  ~Block() { std::free(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  float* at_least(std::size_t bytes) noexcept {
    if (bytes > bytes_) {
      std::free(data_);
      const std::size_t alignment = bytes >= kHugePage / 2 ? kHugePage : 4096;
      bytes_ = (bytes + alignment - 1) / alignment * alignment;
      data_ = std::aligned_alloc(alignment, bytes_);
      if (data_ == nullptr) {
        bytes_ = 0;
      } else if (alignment == kHugePage) {
        madvise(data_, bytes_, MADV_HUGEPAGE);  // advice: small pages work as well, slower
      }
    }
    return static_cast<float*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace

float* thread_buffer(ThreadBuffer which, std::int64_t num_floats) noexcept {
  thread_local std::array<Block, kNumThreadBuffers> blocks;
  return blocks[static_cast<std::size_t>(which)].at_least(static_cast<std::size_t>(num_floats) *
                                                          sizeof(float));
}

void throw_out_of_buffers(const char* operation) {
  throw RuntimeFault(std::string(operation) +
                     ": no memory for the packing buffers of a thread (a few MiB each); free "
                     "memory on this machine, "
                     "or use fewer threads (OMP_NUM_THREADS)");
}

}  // namespace openmoe::cpu
