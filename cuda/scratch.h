// Scratch: device memory an op needs only while it runs, and PinnedScratch: host memory that copies
// of the stream reach without a stop. All ops run on one stream, so one block of each serves them
// all. A network gives ops what they will need (Ops::use_workspace); without, they grow to the
// largest demand.
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
  // From now on `data`, of someone else, as far as it goes; null: own memory again.
  void use(void* data, std::int64_t bytes);

 private:
  void release();

  void* data_ = nullptr;
  bool is_own_ = true;
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
template <typename Layout>
std::int64_t carved_bytes(Layout&& layout) {
  ScratchCursor sizing;
  layout(sizing);
  return sizing.bytes();
}
template <typename Room, typename Layout>
void carve(Room& scratch, Layout&& layout) {
  ScratchCursor placing(scratch.reserve(carved_bytes(layout)));
  layout(placing);
}

}  // namespace openmoe::cuda
