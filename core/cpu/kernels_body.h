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
  typedef std::uint16_t Half __attribute__((vector_size(kLanes * 2)));
};

template <class T>
using Vec = typename VectorOf<T::kLanes>::Float;
template <class T>
using IntVec = typename VectorOf<T::kLanes>::Int;
template <class T>
using UnsignedVec = typename VectorOf<T::kLanes>::Unsigned;
template <class T>
using HalfVec = typename VectorOf<T::kLanes>::Half;

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
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {  // C comes from afar and is needed last
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) __builtin_prefetch(c + i * ldc + j * kLanes, 1, 3);
  }
#pragma GCC unroll 1
  for (std::int64_t p = 0; p < depth; ++p) {
    Vec<T> bv[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) load(bv[j], b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> av = T::broadcast(a[i * Layout::row_stride()]);
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

// One tile of C (height, width) from a packed panel; width is at most a panel.
template <class T, class Layout>
void multiply_tile(const float* a, const float* panel, float* c, std::int64_t ldc,
                   std::int64_t height, std::int64_t width, std::int64_t depth, bool accumulate) {
  static constexpr MicroTiles<T, Layout> kTiles;
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const std::int64_t vecs = (width + T::kLanes - 1) / T::kLanes;
  const MicroTile tile = kTiles.at[vecs - 1][height - 1];
  if (vecs * T::kLanes == width) {
    tile(a, panel, c, ldc, depth, accumulate);
    return;
  }
  alignas(64) float part[T::kTileRows * kPanel];
  tile(a, panel, part, kPanel, depth, false);
  for (std::int64_t r = 0; r < height; ++r) {
    for (std::int64_t s = 0; s < width; ++s)
      c[r * ldc + s] = accumulate ? c[r * ldc + s] + part[r * kPanel + s] : part[r * kPanel + s];
  }
}

// c (rows, cols) = or += a b; a in the given layout, b in panels.
template <class T, class Layout>
void multiply(const float* a, const float* b, float* c, std::int64_t ldc, std::int64_t rows,
              std::int64_t cols, std::int64_t depth, bool accumulate) {
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const TileHeights tiles = tile_heights(rows, T::kTileRows);
  for (std::int64_t j = 0; j < cols; j += kPanel) {
    std::int64_t i = 0;
    for (std::int64_t t = 0; t < tiles.num_tiles; ++t) {
      const std::int64_t height = tiles.height + (t < tiles.num_taller ? 1 : 0);
      multiply_tile<T, Layout>(a + Layout::tile_offset(i, depth), b + j * depth, c + i * ldc + j,
                               ldc, height, min_of(kPanel, cols - j), depth, accumulate);
      i += height;
    }
  }
}

}  // namespace openmoe::cpu::body
