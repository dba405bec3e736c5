// Memory that an op needs while it runs. It grows to the largest request of the first step and is
// then only reused, so that no later step allocates.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe::cpu {

class Scratch {
 public:
  // Room for `count` values of T, 64-byte aligned, contents undefined. Valid until the next call.
  template <typename T>
  T* get(std::int64_t count) {
    const std::int64_t bytes = (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
    if (bytes > bytes_) {
      block_.reset();
      bytes_ = 0;
      block_.reset(std::aligned_alloc(64, static_cast<std::size_t>(bytes)));
      if (block_ == nullptr)
        throw RuntimeFault(concat("out of memory: ", bytes, " bytes of scratch for a CPU op"));
      bytes_ = bytes;
    }
    return static_cast<T*>(block_.get());
  }

 private:
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  std::unique_ptr<void, Free> block_;
  std::int64_t bytes_ = 0;
};

}  // namespace openmoe::cpu
