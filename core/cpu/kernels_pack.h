// Packing of operands and conversion between f32 and bf16, for all instruction sets (see
// kernels_body.h for the rules of such files).
#pragma once

#include <cstdint>
#include <utility>

#include "core/cpu/kernels.h"
#include "core/cpu/kernels_body.h"

namespace openmoe::cpu::body {

// A strip is `width` neighbours (rows of A or columns of B) along k: packed[p * step + i] =
// value(i, p). A Source reads values from memory: kPerValue elements, neighbours along k, make one
// value of 32 bits. `along` reads a vector of values that follow each other in k, `across` one of
// neighbours in the strip, whose next elements along k are ld further, and `one` a single value
// whose elements are `distance` apart. Elements that do not exist (odd k) count as 0.

template <class T>
struct F32Source {
  using Element = float;
  static constexpr std::int64_t kPerValue = 1;
  [[gnu::always_inline]] static void along(Vec<T>& v, const float* from) { load(v, from); }
  [[gnu::always_inline]] static void across(Vec<T>& v, const float* from, std::int64_t, bool) {
    load(v, from);
  }
  [[gnu::always_inline]] static float one(const float* from, std::int64_t, bool) { return *from; }
};

// bf16 widened to f32.
template <class T>
struct WidenedSource {
  using Element = std::uint16_t;
  static constexpr std::int64_t kPerValue = 1;
  [[gnu::always_inline]] static void along(Vec<T>& v, const Element* from) {
    HalfVec<T> half;
    load(half, from);
    v = __builtin_bit_cast(Vec<T>, __builtin_convertvector(half, UnsignedVec<T>) << 16);
  }
  [[gnu::always_inline]] static void across(Vec<T>& v, const Element* from, std::int64_t, bool) {
    along(v, from);
  }
  [[gnu::always_inline]] static float one(const Element* from, std::int64_t, bool) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(*from) << 16);
  }
};

// Pairs of bf16, the first in the lower half.
template <class T>
struct PairSource {
  using Element = std::uint16_t;
  static constexpr std::int64_t kPerValue = 2;
  [[gnu::always_inline]] static void along(Vec<T>& v, const Element* from) { load(v, from); }
  [[gnu::always_inline]] static void across(Vec<T>& v, const Element* from, std::int64_t ld,
                                            bool two) {
    HalfVec<T> first, second = {};
    load(first, from);
    if (two) load(second, from + ld);
    v = __builtin_bit_cast(Vec<T>, __builtin_convertvector(first, UnsignedVec<T>) |
                                       (__builtin_convertvector(second, UnsignedVec<T>) << 16));
  }
  [[gnu::always_inline]] static float one(const Element* from, std::int64_t distance, bool two) {
    const std::uint32_t second = two ? from[distance] : 0u;
    return __builtin_bit_cast(float, from[0] | (second << 16));
  }
};

// Exchanges the off-diagonal halves of each 2 kDistance square: the butterfly step of a
// transposition. Lanes of `lower` count from sizeof...(lane) in a shuffle.
template <int kDistance, class V, int... lane>
[[gnu::always_inline]] inline void exchange(V& upper, V& lower,
                                            std::integer_sequence<int, lane...>) {
  constexpr int kLanes = sizeof...(lane);
  const V u = __builtin_shufflevector(
      upper, lower, ((lane & kDistance) != 0 ? kLanes + lane - kDistance : lane)...);
  lower = __builtin_shufflevector(upper, lower,
                                  ((lane & kDistance) != 0 ? kLanes + lane : lane + kDistance)...);
  upper = u;
}

template <class T, int kDistance>
[[gnu::always_inline]] inline void transpose_steps(Vec<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < T::kLanes; ++i) {
    if ((i & kDistance) == 0)
      exchange<kDistance>(rows[i], rows[i + kDistance],
                          std::make_integer_sequence<int, T::kLanes>{});
  }
  if constexpr (kDistance > 1) transpose_steps<T, kDistance / 2>(rows);
}

// The kLanes x kLanes block: packed[p * step + i] = value(i, p) for i < height, 0 for the other
// lanes.
template <class T, class Source>
[[gnu::always_inline]] inline void transpose_block(float* packed, std::int64_t step,
                                                   const typename Source::Element* src,
                                                   std::int64_t ld, std::int64_t height) {
  Vec<T> rows[T::kLanes];
  if (height == T::kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < T::kLanes; ++i) Source::along(rows[i], src + i * ld);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < T::kLanes; ++i) {
      rows[i] = Vec<T>{};
      if (i < height) Source::along(rows[i], src + i * ld);
    }
  }
  transpose_steps<T, T::kLanes / 2>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < T::kLanes; ++i) store(packed + i * step, rows[i]);
}

// Elements contiguous along k. Whole vectors are stored: lanes from `width` up to the next multiple
// of kLanes become 0, or, where step is smaller than that, are overwritten by the next k.
template <class T, class Source>
void pack_strip_transposed(float* packed, std::int64_t step, const typename Source::Element* src,
                           std::int64_t ld, std::int64_t width, std::int64_t k) {
  constexpr std::int64_t kLanes = T::kLanes, kPer = Source::kPerValue;
  std::int64_t p = 0;  // of the packed values
  for (; (p + kLanes) * kPer <= k; p += kLanes) {
    for (std::int64_t i = 0; i < width; i += kLanes)
      transpose_block<T, Source>(packed + p * step + i, step, src + i * ld + p * kPer, ld,
                                 min_of(kLanes, width - i));
  }
  for (; p * kPer < k; ++p) {
    const bool two = p * kPer + 1 < k;
    for (std::int64_t i = 0; i < width; ++i)
      packed[p * step + i] = Source::one(src + i * ld + p * kPer, 1, two);
    for (std::int64_t i = width; i < step; ++i) packed[p * step + i] = 0.0f;
  }
}

// Elements contiguous along the strip; `readable` >= width of them may be read in each row.
template <class T, class Source>
void pack_strip_straight(float* packed, std::int64_t step, const typename Source::Element* src,
                         std::int64_t ld, std::int64_t width, std::int64_t readable,
                         std::int64_t k) {
  constexpr std::int64_t kLanes = T::kLanes, kPer = Source::kPerValue;
  const std::int64_t vecs = (width + kLanes - 1) / kLanes;
  if (vecs * kLanes <= readable && (vecs == 1 || vecs == 2)) {
    for (std::int64_t p = 0; p * kPer < k; ++p) {
      const typename Source::Element* from = src + p * kPer * ld;
      const bool two = p * kPer + 1 < k;
      Vec<T> v;
      Source::across(v, from, ld, two);
      store(packed + p * step, v);
      if (vecs == 2) {
        Source::across(v, from + kLanes, ld, two);
        store(packed + p * step + kLanes, v);
      }
    }
    return;
  }
  for (std::int64_t p = 0; p * kPer < k; ++p) {
    const bool two = p * kPer + 1 < k;
    for (std::int64_t i = 0; i < width; ++i)
      packed[p * step + i] = Source::one(src + p * kPer * ld + i, ld, two);
    for (std::int64_t i = width; i < step; ++i) packed[p * step + i] = 0.0f;
  }
}

template <class T, class Source = F32Source<T>>
void pack_a(float* packed, const void* source, std::int64_t ld, bool transposed, std::int64_t rows,
            std::int64_t k) {
  const auto* a = static_cast<const typename Source::Element*>(source);
  const TileHeights tiles = tile_heights(rows, T::kTileRows);
  const std::int64_t depth = (k + Source::kPerValue - 1) / Source::kPerValue;
  std::int64_t i = 0;
  for (std::int64_t t = 0; t < tiles.num_tiles; ++t) {
    const std::int64_t height = tiles.height + (t < tiles.num_taller ? 1 : 0);
    if (transposed)
      pack_strip_straight<T, Source>(packed + i * depth, height, a + i, ld, height, rows - i, k);
    else
      pack_strip_transposed<T, Source>(packed + i * depth, height, a + i * ld, ld, height, k);
    i += height;
  }
}

template <class T, class Source = F32Source<T>>
void pack_b(float* packed, const void* source, std::int64_t ld, bool transposed, std::int64_t k,
            std::int64_t cols) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const auto* b = static_cast<const typename Source::Element*>(source);
  const std::int64_t depth = (k + Source::kPerValue - 1) / Source::kPerValue;
  for (std::int64_t j = 0; j < cols; j += kPanel) {
    const std::int64_t width = min_of(kPanel, cols - j);
    if (transposed)
      pack_strip_transposed<T, Source>(packed + j * depth, kPanel, b + j * ld, ld, width, k);
    else
      pack_strip_straight<T, Source>(packed + j * depth, kPanel, b + j, ld, width, width, k);
  }
}

// ---- conversion ----

template <class T>
[[gnu::always_inline]] inline void round_vec(HalfVec<T>& half, const Vec<T>& value) {
  const UnsignedVec<T> word = __builtin_bit_cast(UnsignedVec<T>, value);
  const UnsignedVec<T> rounded = (word + (0x7fffu + ((word >> 16) & 1u))) >> 16;
  const UnsignedVec<T> quiet = (word >> 16) | 0x0040u;
  half = __builtin_convertvector((word & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, HalfVec<T>);
}

[[gnu::always_inline]] inline std::uint16_t round_one(float value) {
  const std::uint32_t word = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t rounded = (word + (0x7fffu + ((word >> 16) & 1u))) >> 16;
  const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(nan ? (word >> 16) | 0x0040u : rounded);
}

template <class T>
void rows_to_bf16(BFloat16* to, std::int64_t to_ld, const float* from, std::int64_t from_ld,
                  std::int64_t rows, std::int64_t cols) {
  for (std::int64_t i = 0; i < rows; ++i) {
    std::int64_t j = 0;
    for (; j + T::kLanes <= cols; j += T::kLanes) {
      Vec<T> value;
      load(value, from + i * from_ld + j);
      HalfVec<T> half;
      round_vec<T>(half, value);
      store(to + i * to_ld + j, half);
    }
    for (; j < cols; ++j) to[i * to_ld + j].bits = round_one(from[i * from_ld + j]);
  }
}

template <class T>
void rows_to_f32(float* to, std::int64_t to_ld, const BFloat16* from, std::int64_t from_ld,
                 std::int64_t rows, std::int64_t cols) {
  for (std::int64_t i = 0; i < rows; ++i) {
    std::int64_t j = 0;
    for (; j + T::kLanes <= cols; j += T::kLanes) {
      HalfVec<T> half;
      load(half, from + i * from_ld + j);
      store(to + i * to_ld + j,
            UnsignedVec<T>(__builtin_convertvector(half, UnsignedVec<T>) << 16));
    }
    for (; j < cols; ++j) {
      const std::uint32_t word = static_cast<std::uint32_t>(from[i * from_ld + j].bits) << 16;
      __builtin_memcpy(to + i * to_ld + j, &word, sizeof word);
    }
  }
}

// to = factor * from
template <class T>
void store_scaled(float* to, const float* from, float factor, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i] * factor;
}
template <class T>
void store_scaled(BFloat16* to, const float* from, float factor, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + T::kLanes <= n; i += T::kLanes) {
    Vec<T> value;
    load(value, from + i);
    HalfVec<T> half;
    round_vec<T>(half, value * factor);
    store(to + i, half);
  }
  for (; i < n; ++i) to[i].bits = round_one(from[i] * factor);
}

template <class T>
constexpr ConvertKernels convert_kernels() {
  return {&rows_to_bf16<T>, &rows_to_f32<T>};
}

}  // namespace openmoe::cpu::body
