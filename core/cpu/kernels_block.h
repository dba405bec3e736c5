// Product of blocks with packing on the way, for all instruction sets (see kernels_body.h for the
// rules of such files).
//
// A panel of B is packed just before its first use and a tile of A at its first use, and while
// tiles are multiplied the source of the next panel and the next tile are prefetched: reading the
// operands hides behind the arithmetic, which matters when a weight meets few rows.
#pragma once

#include <cstdint>

#include "core/cpu/kernels.h"
#include "core/cpu/kernels_body.h"
#include "core/cpu/kernels_pack.h"

namespace openmoe::cpu::body {

inline constexpr std::int64_t kCacheLine = 64;

// Memory to be read soon: num_rows pieces of lines_per_row lines, stride bytes apart. `row` and
// `line` say what comes next.
struct Upcoming {
  const char* data;
  std::int64_t stride, num_rows, lines_per_row, row, line;
};

// Of a strip of `width` rows of A or columns of B over k.
template <class Source>
[[gnu::always_inline]] inline Upcoming upcoming_strip(const typename Source::Element* data,
                                                      std::int64_t ld, bool along_k,
                                                      std::int64_t width, std::int64_t k) {
  constexpr std::int64_t kSize = sizeof(typename Source::Element);
  const std::int64_t length = (along_k ? k : width) * kSize;
  return {reinterpret_cast<const char*>(data),
          ld * kSize,
          along_k ? width : k,
          length / kCacheLine + 1,
          0,
          0};
}

[[gnu::always_inline]] inline void prefetch_some(Upcoming& what, std::int64_t lines) {
  for (; lines > 0 && what.row < what.num_rows; --lines) {
    __builtin_prefetch(what.data + what.row * what.stride + what.line * kCacheLine, 0, 2);
    if (++what.line == what.lines_per_row) {
      what.line = 0;
      ++what.row;
    }
  }
}

[[gnu::always_inline]] inline std::int64_t lines_a_turn(const Upcoming& what, std::int64_t turns) {
  return (what.num_rows * what.lines_per_row + turns - 1) / turns;
}

template <class T, class Source>
struct BlockSource {
  const typename Source::Element* data;
  std::int64_t ld;
  bool along_k;  // elements along k are neighbours in memory

  // The strip that begins at row (of A) or column (of B) `at`.
  [[gnu::always_inline]] const typename Source::Element* strip(std::int64_t at) const {
    return data + (along_k ? at * ld : at);
  }
  [[gnu::always_inline]] Upcoming upcoming(std::int64_t at, std::int64_t width,
                                           std::int64_t k) const {
    return upcoming_strip<Source>(strip(at), ld, along_k, width, k);
  }
  [[gnu::always_inline]] void pack(float* packed, std::int64_t step, std::int64_t at,
                                   std::int64_t width, std::int64_t readable,
                                   std::int64_t k) const {
    if (along_k)
      pack_strip_transposed<T, Source>(packed, step, strip(at), ld, width, k);
    else
      pack_strip_straight<T, Source>(packed, step, strip(at), ld, width, readable, k);
  }
};

template <class T, class Source>
void multiply_block(const BlockProduct& x) {
  using Element = typename Source::Element;
  constexpr std::int64_t kPanel = T::kPanelVecs * T::kLanes;
  const BlockSource<T, Source> a{static_cast<const Element*>(x.a.data), x.a.ld, !x.a.transposed};
  const BlockSource<T, Source> b{static_cast<const Element*>(x.b.data), x.b.ld, x.b.transposed};
  const TileHeights tiles = tile_heights(x.rows, T::kTileRows);
  const std::int64_t depth = (x.k + Source::kPerValue - 1) / Source::kPerValue;
  for (std::int64_t j = 0; j < x.cols; j += kPanel) {
    const std::int64_t width = min_of(kPanel, x.cols - j);
    float* panel = x.packed_b + (x.pack_b == PackB::discard ? 0 : j * depth);
    Upcoming next_panel{};
    if (x.pack_b != PackB::reuse) {
      b.pack(panel, kPanel, j, width, width, x.k);
      if (j + kPanel < x.cols)
        next_panel = b.upcoming(j + kPanel, min_of(kPanel, x.cols - j - kPanel), x.k);
    }
    const std::int64_t turn = lines_a_turn(next_panel, tiles.num_tiles);
    std::int64_t i = 0;
    for (std::int64_t t = 0; t < tiles.num_tiles; ++t) {
      const std::int64_t height = tiles.height + (t < tiles.num_taller ? 1 : 0);
      if (j == 0) {
        a.pack(x.packed_a + i * depth, height, i, height, x.rows - i, x.k);
        if (t + 1 < tiles.num_tiles) {
          Upcoming next_tile = a.upcoming(i + height, min_of(height, x.rows - i - height), x.k);
          prefetch_some(next_tile, next_tile.num_rows * next_tile.lines_per_row);
        }
      }
      prefetch_some(next_panel, turn);
      multiply_tile<T, PackedTiles>(x.packed_a + i * depth, panel, x.c + i * x.ldc + j, x.ldc,
                                    height, width, depth, x.accumulate);
      i += height;
    }
  }
}

template <class T, class Source>
constexpr GemmKernels gemm_kernels() {
  return {T::kTileRows, T::kPanelVecs * T::kLanes, Source::kPerValue, &multiply_block<T, Source>};
}

}  // namespace openmoe::cpu::body
