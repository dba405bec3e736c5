// Products of rows of activations with packed matrices, over all threads.
#pragma once

#include <cstdint>
#include <span>

#include "core/infer/packed_matrix.h"

namespace openmoe::infer {

// y = x w^T: y (rows, w.out()) at y_ld, x (rows, w.in()) at x_ld, zeros from w.in() to
// padded(w.in()).
struct Product {
  float* y;
  std::int64_t y_ld;
  const float* x;
  std::int64_t x_ld;
  std::int64_t rows;
  const PackedMatrix* w;
};

// All of them, scheduled over the threads together. Results depend neither on their number nor on
// the other products.
void multiply(std::span<const Product> products);

}  // namespace openmoe::infer
