// Tensor: a non-owning view of a dense row-major array. It has no arithmetic and allocates nothing;
// an Arena owns the memory and Ops do the work.
//
// Dimension glossary, used in code, tests, logs and recipes:
//   B rows of a batch, T positions of a row (sequence length), N = B*T tokens, D model width
//   (hidden size), H heads, Dh head width, A = H*Dh, F hidden width of an FFN or expert, Fg width
//   of the gate projection (F, or 2F for gated SwiGLU), E experts, El experts held by this rank, K
//   = 2 choices per token, G tokens per routing group, C slots per (group, expert), S rows sent by
//   this rank to experts, M rows received for this rank's experts, V vocabulary rows, L layers.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/base/check.h"
#include "core/base/dtype.h"

namespace openmoe {

enum class Device : std::uint8_t { host, cuda };

struct Shape {
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims) {
    OPENMOE_CHECK(dims.size() <= kMaxRank, "rank ", dims.size());
    for (const std::int64_t dim : dims) sizes[rank++] = dim;
  }

  std::int64_t operator[](int axis) const {
    OPENMOE_CHECK(axis >= 0 && axis < rank, "axis ", axis, " of rank ", rank);
    return sizes[axis];
  }
  std::int64_t num_elements() const {
    std::int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= sizes[i];
    return product;
  }
  bool operator==(const Shape& other) const = default;
  std::string to_string() const {
    std::string text = "(";
    for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
    return text + ")";
  }

  int rank = 0;
  std::array<std::int64_t, kMaxRank> sizes{};
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::host;
  Shape shape;

  std::int64_t size(int axis) const { return shape[axis]; }
  std::int64_t num_elements() const { return shape.num_elements(); }
  std::int64_t size_bytes() const { return num_elements() * size_of(dtype); }
  // Of one index of the first axis, also where there is none.
  std::int64_t row_bytes() const {
    std::int64_t bytes = size_of(dtype);
    for (int axis = 1; axis < shape.rank; ++axis) bytes *= shape[axis];
    return bytes;
  }
  explicit operator bool() const { return data != nullptr; }

  // The elements as T; the dtype must be T's.
  template <typename T>
  T* as() const {
    OPENMOE_CHECK(dtype == DTypeOf<T>::value, "tensor holds ", name_of(dtype));
    return static_cast<T*>(data);
  }

  // Rows [begin, end) along the first axis.
  Tensor rows(std::int64_t begin, std::int64_t end) const {
    OPENMOE_CHECK(0 <= begin && begin <= end && end <= size(0), "rows [", begin, ", ", end, ") of ",
                  shape.to_string());
    Tensor view = *this;
    view.data = data == nullptr ? nullptr : static_cast<char*>(data) + begin * row_bytes();
    view.shape.sizes[0] = end - begin;
    return view;
  }

  // The same elements in another shape of equal size.
  Tensor reshaped(const Shape& other) const {
    OPENMOE_CHECK(other.num_elements() == num_elements(), other.to_string(), " from ",
                  shape.to_string());
    Tensor view = *this;
    view.shape = other;
    return view;
  }
};

// A host view of existing memory, mostly for tests.
template <typename T>
Tensor host_view(T* data, const Shape& shape) {
  return Tensor{data, DTypeOf<T>::value, Device::host, shape};
}

}  // namespace openmoe
