// The kernels of all instruction sets, written once with GCC vector extensions and templated on a
// traits type that only one kernels_<isa>.cpp knows. Each of those files is compiled with flags
// that other machines cannot run, so nothing here may produce a symbol that another file could pick
// up: every function is a template on the traits or always inlined, and the standard library stays
// out.
//
// Traits: kLanes (floats of a vector), kTileRows, kPanelVecs (size of the register tile), kPerValue
// (k steps of a packed value) and multiply_add(acc, a, b).
#pragma once

#include <cstdint>

#include "core/cpu/kernels.h"

namespace openmoe::cpu::body {

template <int kLanes>
struct VectorOf {
  typedef float Float __attribute__((vector_size(kLanes * 4)));
  typedef std::int32_t Int __attribute__((vector_size(kLanes * 4)));
  typedef std::uint32_t Unsigned __attribute__((vector_size(kLanes * 4)));
};

template <class T>
using Vec = typename VectorOf<T::kLanes>::Float;
template <class T>
using IntVec = typename VectorOf<T::kLanes>::Int;
template <class T>
using UnsignedVec = typename VectorOf<T::kLanes>::Unsigned;

template <class V>
[[gnu::always_inline]] inline void load(V& v, const void* from) {
  __builtin_memcpy(&v, from, sizeof v);
}
template <class V>
[[gnu::always_inline]] inline void store(void* to, const V& v) {
  __builtin_memcpy(to, &v, sizeof v);
}

[[gnu::always_inline]] inline std::int64_t min_of(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

// ---- register tile ----

// Where the rows of a tile of A lie. Packed: [depth][rows of the tile], tiles one after the other.
struct PackedTiles {
  [[gnu::always_inline]] static constexpr std::int64_t row_stride() { return 1; }
  template <int kRows>
  [[gnu::always_inline]] static constexpr std::int64_t step() {
    return kRows;
  }
  [[gnu::always_inline]] static std::int64_t tile_offset(std::int64_t row, std::int64_t depth) {
    return row * depth;
  }
};
// Inside a dense block [depth][kWidth], rows of A along the width.
template <std::int64_t kWidth>
struct DepthMajor {
  [[gnu::always_inline]] static constexpr std::int64_t row_stride() { return 1; }
  template <int kRows>
  [[gnu::always_inline]] static constexpr std::int64_t step() {
    return kWidth;
  }
  [[gnu::always_inline]] static std::int64_t tile_offset(std::int64_t row, std::int64_t) {
    return row;
  }
};
// Inside a dense block [rows][kWidth], depth along the width.
template <std::int64_t kWidth>
struct RowMajor {
  [[gnu::always_inline]] static constexpr std::int64_t row_stride() { return kWidth; }
  template <int kRows>
  [[gnu::always_inline]] static constexpr std::int64_t step() {
    return 1;
  }
  [[gnu::always_inline]] static std::int64_t tile_offset(std::int64_t row, std::int64_t) {
    return row * kWidth;
  }
};

// c (kRows, kVecs * kLanes) = or += a b over `depth` values; b is [depth][panel].
// A sum over k is one chain of multiply-adds in rising k, whatever the tile: results do not depend
// on the tiling.
template <class T, class Layout, int kRows, int kVecs>
void micro_tile(const float* a, const float* b, float* c, std::int64_t ldc, std::int64_t depth,
                bool accumulate) {
  constexpr int kLanes = T::kLanes;
  Vec<T> acc[kRows][kVecs] = {};
#pragma GCC unroll 1
  for (std::int64_t p = 0; p < depth; ++p) {
    Vec<T> bv[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) load(bv[j], b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> av = a[i * Layout::row_stride()] - Vec<T>{};
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) acc[i][j] = T::multiply_add(acc[i][j], av, bv[j]);
    }
    a += Layout::template step<kRows>();
    b += T::kPanelVecs * kLanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      Vec<T> out = acc[i][j];
      float* to = c + i * ldc + j * kLanes;
      if (accumulate) {
        Vec<T> old;
        load(old, to);
        out = old + out;
      }
      store(to, out);
    }
  }
}

using MicroTile = void (*)(const float* a, const float* b, float* c, std::int64_t ldc,
                           std::int64_t depth, bool accumulate);

// The variants for 1 to kTileRows rows and 1 to kPanelVecs vectors, by [vecs - 1][rows - 1].
template <class T, class Layout>
struct MicroTiles {
  MicroTile at[T::kPanelVecs][T::kTileRows];

  template <int kVecs, int kRows>
  constexpr void fill() {
    at[kVecs - 1][kRows - 1] = &micro_tile<T, Layout, kRows, kVecs>;
    if constexpr (kRows > 1)
      fill<kVecs, kRows - 1>();
    else if constexpr (kVecs > 1)
      fill<kVecs - 1, T::kTileRows>();
  }
  constexpr MicroTiles() : at{} { fill<T::kPanelVecs, T::kTileRows>(); }
};

// Rows are cut into the fewest tiles, as equal as possible: the first `num_taller` tiles have
// height + 1 rows.
struct TileHeights {
  std::int64_t num_tiles, height, num_taller;
};
[[gnu::always_inline]] inline TileHeights tile_heights(std::int64_t rows, std::int64_t tile_rows) {
  const std::int64_t num_tiles = (rows + tile_rows - 1) / tile_rows;
  if (num_tiles == 0) return {0, 0, 0};
  return {num_tiles, rows / num_tiles, rows % num_tiles};
}

// c (rows, cols) = or += a b; a in the given layout, b in panels.
template <class T, class Layout>
void multiply(const float* a, const float* b, float* c, std::int64_t ldc, std::int64_t rows,
              std::int64_t cols, std::int64_t depth, bool accumulate) {
  static constexpr MicroTiles<T, Layout> kTiles;
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const TileHeights tiles = tile_heights(rows, T::kTileRows);
  for (std::int64_t j = 0; j < cols; j += kPanel) {
    const float* panel = b + j * depth;
    const std::int64_t width = min_of(kPanel, cols - j);
    const std::int64_t vecs = (width + T::kLanes - 1) / T::kLanes;
    const bool ragged = vecs * T::kLanes != width;
    std::int64_t i = 0;
    for (std::int64_t t = 0; t < tiles.num_tiles; ++t) {
      const std::int64_t height = tiles.height + (t < tiles.num_taller ? 1 : 0);
      const MicroTile tile = kTiles.at[vecs - 1][height - 1];
      const float* from = a + Layout::tile_offset(i, depth);
      float* to = c + i * ldc + j;
      if (!ragged) {
        tile(from, panel, to, ldc, depth, accumulate);
      } else {
        alignas(64) float part[T::kTileRows * kPanel];
        tile(from, panel, part, kPanel, depth, false);
        for (std::int64_t r = 0; r < height; ++r) {
          for (std::int64_t s = 0; s < width; ++s)
            to[r * ldc + s] =
                accumulate ? to[r * ldc + s] + part[r * kPanel + s] : part[r * kPanel + s];
        }
      }
      i += height;
    }
  }
}

// ---- packing ----
// A strip is `width` neighbours (rows of A or columns of B) along k: packed[p * step + i] =
// value(i, p).

// Exchanges the off-diagonal halves of each 2 kDistance square: the butterfly step of a
// transposition.
template <class T, int kDistance>
[[gnu::always_inline]] inline void exchange(Vec<T>& upper, Vec<T>& lower) {
  IntVec<T> upper_mask, lower_mask;
  for (int i = 0; i < T::kLanes; ++i) {
    upper_mask[i] = (i & kDistance) ? T::kLanes + i - kDistance : i;
    lower_mask[i] = (i & kDistance) ? T::kLanes + i : i + kDistance;
  }
  const Vec<T> u = __builtin_shuffle(upper, lower, upper_mask);
  lower = __builtin_shuffle(upper, lower, lower_mask);
  upper = u;
}

template <class T, int kDistance>
[[gnu::always_inline]] inline void transpose_steps(Vec<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < T::kLanes; ++i) {
    if ((i & kDistance) == 0) exchange<T, kDistance>(rows[i], rows[i + kDistance]);
  }
  if constexpr (kDistance > 1) transpose_steps<T, kDistance / 2>(rows);
}

// The kLanes x kLanes block: packed[p * step + i] = src[i * ld + p] for i < height, 0 for the other
// lanes.
template <class T>
[[gnu::always_inline]] inline void transpose_block(float* packed, std::int64_t step,
                                                   const float* src, std::int64_t ld,
                                                   std::int64_t height) {
  Vec<T> rows[T::kLanes];
  if (height == T::kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < T::kLanes; ++i) load(rows[i], src + i * ld);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < T::kLanes; ++i) {
      rows[i] = Vec<T>{};
      if (i < height) load(rows[i], src + i * ld);
    }
  }
  transpose_steps<T, T::kLanes / 2>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < T::kLanes; ++i) store(packed + i * step, rows[i]);
}

// Values contiguous along k. Whole vectors are stored: lanes from `width` up to the next multiple
// of kLanes become 0, or, where step is smaller than that, are overwritten by the next k.
template <class T>
void pack_strip_transposed(float* packed, std::int64_t step, const float* src, std::int64_t ld,
                           std::int64_t width, std::int64_t depth) {
  constexpr std::int64_t kLanes = T::kLanes;
  std::int64_t p = 0;
  for (; p + kLanes <= depth; p += kLanes) {
    for (std::int64_t i = 0; i < width; i += kLanes)
      transpose_block<T>(packed + p * step + i, step, src + i * ld + p, ld,
                         min_of(kLanes, width - i));
  }
  for (; p < depth; ++p) {
    for (std::int64_t i = 0; i < width; ++i) packed[p * step + i] = src[i * ld + p];
    for (std::int64_t i = width; i < step; ++i) packed[p * step + i] = 0.0f;
  }
}

// Values contiguous along the strip; `readable` >= width of them may be read in each row.
template <class T>
void pack_strip_straight(float* packed, std::int64_t step, const float* src, std::int64_t ld,
                         std::int64_t width, std::int64_t readable, std::int64_t depth) {
  constexpr std::int64_t kLanes = T::kLanes;
  const std::int64_t vecs = (width + kLanes - 1) / kLanes;
  if (vecs * kLanes <= readable && (vecs == 1 || vecs == 2)) {
    for (std::int64_t p = 0; p < depth; ++p) {
      Vec<T> v;
      load(v, src + p * ld);
      store(packed + p * step, v);
      if (vecs == 2) {
        load(v, src + p * ld + kLanes);
        store(packed + p * step + kLanes, v);
      }
    }
    return;
  }
  for (std::int64_t p = 0; p < depth; ++p) {
    for (std::int64_t i = 0; i < width; ++i) packed[p * step + i] = src[p * ld + i];
    for (std::int64_t i = width; i < step; ++i) packed[p * step + i] = 0.0f;
  }
}

template <class T>
void pack_a(float* packed, const void* source, std::int64_t ld, bool transposed, std::int64_t rows,
            std::int64_t k) {
  const float* a = static_cast<const float*>(source);
  const TileHeights tiles = tile_heights(rows, T::kTileRows);
  std::int64_t i = 0;
  for (std::int64_t t = 0; t < tiles.num_tiles; ++t) {
    const std::int64_t height = tiles.height + (t < tiles.num_taller ? 1 : 0);
    if (transposed)
      pack_strip_straight<T>(packed + i * k, height, a + i, ld, height, rows - i, k);
    else
      pack_strip_transposed<T>(packed + i * k, height, a + i * ld, ld, height, k);
    i += height;
  }
}

template <class T>
void pack_b(float* packed, const void* source, std::int64_t ld, bool transposed, std::int64_t k,
            std::int64_t cols) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const float* b = static_cast<const float*>(source);
  for (std::int64_t j = 0; j < cols; j += kPanel) {
    const std::int64_t width = min_of(kPanel, cols - j);
    if (transposed)
      pack_strip_transposed<T>(packed + j * k, kPanel, b + j * ld, ld, width, k);
    else
      pack_strip_straight<T>(packed + j * k, kPanel, b + j, ld, width, width, k);
  }
}

template <class T>
constexpr GemmKernels gemm_kernels() {
  return {T::kTileRows, T::kPanelVecs * T::kLanes, T::kPerValue, &pack_a<T>,
          &pack_b<T>,   &multiply<T, PackedTiles>};
}

}  // namespace openmoe::cpu::body
