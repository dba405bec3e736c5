// Placement: which part of a global tensor a rank holds, as boxes. It drives initialisation,
// checkpoints and tests, which know tensors by their global shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace openmoe {

// A box of a tensor, [begin, begin + size) along each axis, and where it lies in the held part.
struct Piece {
  Shape global_begin, local_begin, size;
};

// Rows that begin at index `begin` of axis 0, as a tensor of their own of this shape.
inline Piece rows_piece(std::int64_t begin, const Shape& shape) {
  Piece piece{shape, shape, shape};
  piece.global_begin.sizes.fill(0);
  piece.local_begin.sizes.fill(0);
  piece.global_begin.sizes[0] = begin;
  return piece;
}

struct Placement {
  Shape global_shape, local_shape;
  std::vector<Piece> pieces;               // together the whole held part
  bool is_shared_by_tensor_group = false;  // the ranks of a tensor group hold different parts
  bool is_divided = false;                 // so do the ranks that hold the same parameter

  // Leaves indices [begin, end) of one axis of the held part.
  void restrict_to(int axis, std::int64_t begin, std::int64_t end) {
    const auto at = static_cast<std::size_t>(axis);
    std::vector<Piece> rest;
    for (Piece piece : pieces) {
      const std::int64_t first = std::max(piece.local_begin[axis], begin);
      const std::int64_t last = std::min(piece.local_begin[axis] + piece.size[axis], end);
      if (first >= last) continue;
      piece.global_begin.sizes[at] += first - piece.local_begin[axis];
      piece.local_begin.sizes[at] = first - begin;
      piece.size.sizes[at] = last - first;
      rest.push_back(piece);
    }
    pieces = std::move(rest);
    local_shape.sizes[at] = end - begin;
    is_divided = true;
  }
};

// A piece as stretches that are contiguous in both tensors.
class Runs {
 public:
  Runs(const Piece& piece, const Shape& global, const Shape& local)
      : piece_(piece), global_(global), local_(local) {
    OPENMOE_CHECK(piece.size.rank == global.rank && global.rank == local.rank && global.rank > 0,
                  piece.size.to_string(), " of ", global.to_string(), " and ", local.to_string());
  }

  std::int64_t length() const { return piece_.size[piece_.size.rank - 1]; }
  std::int64_t count() const { return length() == 0 ? 0 : piece_.size.num_elements() / length(); }
  // First elements of run i: global, local.
  std::pair<std::int64_t, std::int64_t> at(std::int64_t i) const {
    const int last = piece_.size.rank - 1;
    std::int64_t index[Shape::kMaxRank] = {};
    for (int axis = last - 1; axis >= 0; --axis) {
      index[axis] = i % piece_.size[axis];
      i /= piece_.size[axis];
    }
    std::int64_t global = 0, local = 0;
    for (int axis = 0; axis <= last; ++axis) {
      global = global * global_[axis] + piece_.global_begin[axis] + index[axis];
      local = local * local_[axis] + piece_.local_begin[axis] + index[axis];
    }
    return {global, local};
  }

 private:
  Piece piece_;
  Shape global_, local_;
};

}  // namespace openmoe
