// Host-side choices of a kernel's variant: vector width and storage type.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "core/base/check.h"
#include "core/tensor.h"

namespace openmoe {

template <>
struct DTypeOf<__nv_bfloat16> {
  static constexpr DType value = DType::bf16;
};

namespace cuda {

// Whether rows of `row_length` elements of all tensors can be moved `width` elements at a time:
// every row must begin at an aligned address. Empty tensors and those without memory do not matter.
template <typename... Tensors>
bool can_vectorise(std::int64_t width, std::int64_t row_length, const Tensors&... tensors) {
  const auto aligned = [&](const Tensor& x) {
    const std::int64_t bytes = width * size_of(x.dtype);
    return reinterpret_cast<std::uintptr_t>(x.data) %
               static_cast<std::uintptr_t>(bytes < 16 ? bytes : 16) ==
           0;
  };
  return row_length % width == 0 && (aligned(tensors) && ...);
}

// Calls body(std::integral_constant<int, kWidth>) with kWidth for vectors, or with 1.
template <int kWidth, typename Body>
void with_width(bool vectors, Body&& body) {
  if (vectors)
    body(std::integral_constant<int, kWidth>{});
  else
    body(std::integral_constant<int, 1>{});
}

// Calls body(std::type_identity<T>) with the storage type of `dtype`: [&]<typename
// T>(std::type_identity<T>) { ... }.
template <typename Body>
void with_storage(DType dtype, Body&& body) {
  OPENMOE_CHECK(dtype == DType::f32 || dtype == DType::bf16, "no kernels for ", name_of(dtype));
  if (dtype == DType::f32)
    body(std::type_identity<float>{});
  else
    body(std::type_identity<__nv_bfloat16>{});
}

// Calls body(Index{}) with an integer type that counts to `count`: 32 bits where they are enough,
// since a device divides 64 bits by a long sequence of instructions.
template <typename Body>
void with_index(std::int64_t count, Body&& body) {
  if (count <= 0xffffffff)
    body(std::uint32_t{});
  else
    body(std::uint64_t{});
}

// Elements of one 16-byte access.
template <typename T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

}  // namespace cuda
}  // namespace openmoe
