// The kernels of dot_kernels.h on Lanes<kBytes>, see core/cpu/simd.h. Included by one file per
// instruction set, which may fuse multiplication and addition.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/cpu/simd.h"
#include "core/infer/dot_kernels.h"

namespace openmoe::infer {

// Sixteen-bit lanes, and as many of thirty-two bits in a register of kBytes.
template <int kBytes>
struct WideningVector;
template <>
struct WideningVector<16> {
  typedef std::uint16_t Half __attribute__((vector_size(8)));
  typedef std::uint32_t Whole __attribute__((vector_size(16)));
};
template <>
struct WideningVector<32> {
  typedef std::uint16_t Half __attribute__((vector_size(16)));
  typedef std::uint32_t Whole __attribute__((vector_size(32)));
};
template <>
struct WideningVector<64> {
  typedef std::uint16_t Half __attribute__((vector_size(32)));
  typedef std::uint32_t Whole __attribute__((vector_size(64)));
};

template <int kBytes>
struct DotBody {
  using Lanes = cpu::Lanes<kBytes>;
  // Rows of a panel, and rows of x, whose sums are held in registers together.
  static constexpr int kTileOut = kBytes == 64 ? 8 : kBytes == 32 ? 4 : 2;
  static constexpr int kTileRows = kBytes == 64 ? 3 : 1;

  [[gnu::always_inline]] static Lanes load(const float* w) { return Lanes::load(w); }
  [[gnu::always_inline]] static Lanes load(const BFloat16* w) {
    using Half = typename WideningVector<kBytes>::Half;
    using Whole = typename WideningVector<kBytes>::Whole;
    Lanes result;
    for (int i = 0; i < Lanes::kParts; ++i) {
      Half bits;
      __builtin_memcpy(&bits, w + i * (kBytes / 4), sizeof bits);
      const Whole wide = __builtin_convertvector(bits, Whole) << 16;
      __builtin_memcpy(&result.part[i], &wide, sizeof wide);
    }
    return result;
  }

  // y (kRows, kTileOut) of rows [first, first + kTileOut) of one panel.
  template <int kRows, class Weight>
  [[gnu::always_inline]] static void tile(const PanelProduct& p, std::int64_t row,
                                          const Weight* panel, std::int64_t first,
                                          std::int64_t column) {
    Lanes sums[kRows][kTileOut];
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < kTileOut; ++j) sums[r][j] = Lanes::fill(0.0f);
    const float* const x = p.x + row * p.x_ld;
    const Weight* w = panel + first * kChunk;
    for (std::int64_t k = 0; k < p.in; k += kChunk, w += kPanelRows * kChunk) {
      // Far enough ahead to hide the latency of memory; panels follow each other without a gap.
      if constexpr (kTileOut == kPanelRows)
        for (std::size_t line = 0; line < kPanelRows * kChunk * sizeof(Weight); line += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(w) + 4096 + line, 0, 3);
      for (int j = 0; j < kTileOut; ++j) {
        const Lanes weight = load(w + j * kChunk);
        for (int r = 0; r < kRows; ++r)
          sums[r][j] = sums[r][j] + Lanes::load(x + r * p.x_ld + k) * weight;
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < kTileOut; ++j)
        if (column + j < p.num_out) p.y[(row + r) * p.y_ld + column + j] = cpu::sum(sums[r][j]);
  }

  template <class Weight>
  static void products(const PanelProduct& p) {
    const std::int64_t panel_size = padded(p.in) * kPanelRows;
    for (std::int64_t column = 0; column < p.num_out; column += kPanelRows) {
      const Weight* const panel =
          reinterpret_cast<const Weight*>(p.panels) + column / kPanelRows * panel_size;
      for (std::int64_t first = 0; first < kPanelRows; first += kTileOut) {
        std::int64_t row = 0;
        for (; row + kTileRows <= p.rows; row += kTileRows)
          tile<kTileRows>(p, row, panel, first, column + first);
        for (; row < p.rows; ++row) tile<1>(p, row, panel, first, column + first);
      }
    }
  }

  static void attend(const AttentionQuery& a) {
    const std::int64_t full = (a.length + kChunk - 1) / kChunk;
    Lanes top = Lanes::fill(-3.0e38f);
    for (std::int64_t block = 0; block < full; ++block) {
      const float* const keys = a.keys + block * kChunk * a.head_dim;
      Lanes even = Lanes::fill(0.0f), odd = even;  // head_dim is even
      for (std::int64_t d = 0; d < a.head_dim; d += 2) {
        even = even + Lanes::fill(a.q[d]) * Lanes::load(keys + d * kChunk);
        odd = odd + Lanes::fill(a.q[d + 1]) * Lanes::load(keys + (d + 1) * kChunk);
      }
      Lanes score = (even + odd) * Lanes::fill(a.scale);
      const std::int64_t rest = a.length - block * kChunk;
      score.store(a.scores + block * kChunk);
      if (rest < kChunk) {  // positions not written yet
        for (std::int64_t i = rest; i < kChunk; ++i) a.scores[block * kChunk + i] = -3.0e38f;
        score = Lanes::load(a.scores + block * kChunk);
      }
      top = cpu::max(top, score);
    }
    const Lanes shift = Lanes::fill(cpu::largest(top));
    Lanes total = Lanes::fill(0.0f);
    for (std::int64_t block = 0; block < full; ++block) {
      const Lanes weight = cpu::exp(Lanes::load(a.scores + block * kChunk) - shift);
      weight.store(a.scores + block * kChunk);
      total = total + weight;
    }
    weigh(a, 1.0f / cpu::sum(total));
  }

  // o = factor * sum over positions of scores * values
  static void weigh(const AttentionQuery& a, float factor) {
    std::int64_t d = 0;
    for (; d + 4 * kChunk <= a.head_dim; d += 4 * kChunk) weigh_columns<4>(a, d, factor);
    for (; d + kChunk <= a.head_dim; d += kChunk) weigh_columns<1>(a, d, factor);
    for (; d < a.head_dim; ++d) {
      float sum = 0.0f;
      for (std::int64_t t = 0; t < a.length; ++t) sum += a.scores[t] * a.values[t * a.head_dim + d];
      a.o[d] = factor * sum;
    }
  }
  template <int kVecs>
  [[gnu::always_inline]] static void weigh_columns(const AttentionQuery& a, std::int64_t d,
                                                   float factor) {
    Lanes sums[kVecs];
    for (int i = 0; i < kVecs; ++i) sums[i] = Lanes::fill(0.0f);
    for (std::int64_t t = 0; t < a.length; ++t) {
      const Lanes weight = Lanes::fill(a.scores[t]);
      for (int i = 0; i < kVecs; ++i)
        sums[i] = sums[i] + weight * Lanes::load(a.values + t * a.head_dim + d + i * kChunk);
    }
    for (int i = 0; i < kVecs; ++i) (sums[i] * Lanes::fill(factor)).store(a.o + d + i * kChunk);
  }

  static void activate(float* h, const float* gate_linear, const float* gate, const float* up,
                       std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kChunk) {
      const std::int64_t head = std::min(count - i, kChunk);
      const auto get = [&](const float* from) {
        return head == kChunk ? Lanes::load(from + i) : Lanes::load_head(from + i, head, 0.0f);
      };
      const Lanes g = get(gate);
      Lanes value = g * cpu::sigmoid(g);
      if (gate_linear != nullptr) value = get(gate_linear) * value;
      (value * get(up)).store_head(h + i, head);
    }
  }

  static constexpr DotKernels table() {
    return {&products<float>, &products<BFloat16>, &attend, &activate};
  }
};

}  // namespace openmoe::infer
