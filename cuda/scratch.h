// Scratch: device memory an op needs only while it runs, and PinnedScratch: host memory that copies
// of the stream reach without a stop. All ops run on one stream, so one block of each serves them
// all. They grow to the largest demand, which the first step meets; afterwards nothing is
// allocated.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace openmoe::cuda {

class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Room for `bytes`, valid until the next call of reserve. Throws RuntimeFault that names the
  // size.
  void* reserve(std::int64_t bytes);
  std::int64_t capacity_bytes() const { return capacity_bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t capacity_bytes_ = 0;
};

class PinnedScratch {
 public:
  explicit PinnedScratch(cudaStream_t stream) : stream_(stream) {}
  ~PinnedScratch();
  PinnedScratch(const PinnedScratch&) = delete;
  PinnedScratch& operator=(const PinnedScratch&) = delete;

  // Room for `bytes`, valid until the next call of reserve. The host may touch it after it has
  // waited for the stream, since copies of the call before may still read it. Throws RuntimeFault
  // that names the size.
  void* reserve(std::int64_t bytes);

 private:
  cudaStream_t stream_;
  void* data_ = nullptr;
  std::int64_t capacity_bytes_ = 0;
};

// Cuts a reservation into arrays, each 256-byte aligned. Two passes over the same calls, as an
// Arena: with a null base it only counts.
class ScratchCursor {
 public:
  explicit ScratchCursor(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(std::int64_t count) {
    T* const result = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    return result;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  std::int64_t bytes_ = 0;
};

// `layout(cursor)` takes the arrays an op needs; it is called to size and again to place them.
template <typename Room, typename Layout>
void carve(Room& scratch, Layout&& layout) {
  ScratchCursor sizing;
  layout(sizing);
  ScratchCursor placing(scratch.reserve(sizing.bytes()));
  layout(placing);
}

}  // namespace openmoe::cuda
