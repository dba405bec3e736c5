// PackedMatrix: a weight matrix (out, in) as the decode kernels stream it: panels of eight rows,
// each panel as [in / 16][8 rows][16 columns], padded with zeros. One product with a vector reads
// every byte once, in the order of addresses, which is what lets decoding run at the speed of
// memory. f32, or bf16 storage.
#pragma once

#include <cstdint>
#include <memory>

#include "core/base/dtype.h"

namespace openmoe::infer {

inline constexpr std::int64_t kPanelRows = 8;
inline constexpr std::int64_t kChunk =
    16;  // columns of a chunk; rows of activations are padded to it

constexpr std::int64_t padded(std::int64_t columns) {
  return (columns + kChunk - 1) / kChunk * kChunk;
}

// Zero-filled memory of its own, on huge pages where the system grants them.
class Block {
 public:
  Block() = default;
  // Throws RuntimeFault when the memory cannot be had.
  explicit Block(std::int64_t bytes);
  Block(Block&& other) noexcept;
  Block& operator=(Block&& other) noexcept;
  ~Block();

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // `dtype` is f32 or bf16.
  PackedMatrix(std::int64_t out, std::int64_t in, DType dtype);

  std::int64_t out() const { return out_; }
  std::int64_t in() const { return in_; }
  DType dtype() const { return dtype_; }
  std::int64_t bytes() const { return block_.bytes(); }
  std::int64_t num_panels() const { return (out_ + kPanelRows - 1) / kPanelRows; }
  std::int64_t panel_bytes() const { return padded(in_) * kPanelRows * size_of(dtype_); }
  const char* panel(std::int64_t index) const { return block_.as<char>() + index * panel_bytes(); }

  // Rows [begin, begin + rows) from row-major f32 (rows, in). bf16 storage rounds to nearest even.
  void set_rows(std::int64_t begin, std::int64_t rows, const float* values);
  // The same rows from their transpose: f32 (in, rows), rows of it `ld` apart.
  void set_transposed(std::int64_t begin, std::int64_t rows, const float* values, std::int64_t ld);
  // Row `index` as f32 (in).
  void get_row(std::int64_t index, float* values) const;

 private:
  std::int64_t offset(std::int64_t row, std::int64_t column) const {
    return (row / kPanelRows * (padded(in_) / kChunk) + column / kChunk) * kPanelRows * kChunk +
           row % kPanelRows * kChunk + column % kChunk;
  }
  void set(std::int64_t row, std::int64_t column, float value);

  std::int64_t out_ = 0, in_ = 0;
  DType dtype_ = DType::f32;
  Block block_;
};

}  // namespace openmoe::infer
