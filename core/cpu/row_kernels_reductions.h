// Row kernels that add up a row. See row_kernels_impl.h.
#pragma once

#include <cstdint>

#include "core/cpu/row_kernels.h"
#include "core/cpu/row_kernels_elementwise.h"

namespace openmoe::cpu {

template <int kBytes>
struct ReductionKernels {
  using V = Lanes<kBytes>;
  using Index = std::int64_t;

  template <class Body>
  [[gnu::always_inline]] static void for_lanes(Index n, float filler, const Body& body) {
    ElementwiseKernels<kBytes>::for_lanes(n, filler, body);
  }

  template <class S>
  static float dot(const float* a, const S* b, Index n) {
    V total{};
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto) __attribute__((always_inline)) {
          total = total + load(a + i) * load(b + i);
        });
    return sum(total);
  }

  static constexpr Index kBlock = kReductionBlock;

  template <class Square>
  [[gnu::always_inline]] static double blocked_sum(Index n, const Square& square) {
    double total = 0.0;
    for (Index begin = 0; begin < n; begin += kBlock) {
      V block{};
      for_lanes(
          begin + kBlock < n ? kBlock : n - begin,
          0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
            block = block + square(begin + i, load, store);
          });
      total += static_cast<double>(sum(block));
    }
    return total;
  }

  static double sum_of_squares(const float* x, Index n) {
    return blocked_sum(
        n, [&](Index i, auto load, auto) __attribute__((always_inline)) {
          const V v = load(x + i);
          return v * v;
        });
  }

  template <class S>
  static float rms_norm(S* y, const float* x, const float* w, float eps, Index n) {
    const float mean = dot(x, x, n) / static_cast<float>(n);
    const float rstd = 1.0f / __builtin_sqrtf(mean + eps);
    const V factor = V::fill(rstd);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, load(x + i) * factor * load(w + i));
        });
    return rstd;
  }

  static void rms_norm_backward(float* dx, float* dw, const float* dy, const float* x,
                                const float* w, float rstd, Index n) {
    const V factor = V::fill(rstd);
    V total{};
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V grad = load(dy + i);
          const V normal = load(x + i) * factor;
          total = total + grad * load(w + i) * normal;
          store(dw + i, load(dw + i) + grad * normal);
        });
    const V mean = V::fill(sum(total) / static_cast<float>(n));
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V normal = load(x + i) * factor;
          store(dx + i, load(dx + i) + factor * (load(dy + i) * load(w + i) - normal * mean));
        });
  }

  static float largest_of(const float* x, Index n) {
    V best = V::fill(-__builtin_inff());
    for_lanes(
        n, -__builtin_inff(), [&](Index i, auto load, auto) __attribute__((always_inline)) {
          best = max(best, load(x + i));
        });
    return largest(best);
  }

  static Index first_index_of(float value, const float* x, Index n) {
    for (Index i = 0; i < n; ++i)
      if (x[i] == value) return i;
    return 0;
  }

  // Block by block, each read twice but the second time from the first-level cache; the sum so far
  // is rescaled when a block raises the maximum (Milakov and Gimelshein 2018). visit(index,
  // exponentials, shift, store) sees every vector.
  template <class Visit>
  [[gnu::always_inline]] static ExpSum visit_exponentials(const float* x, Index n,
                                                          const Visit& visit) {
    ExpSum result{-__builtin_inff(), 0, 0.0};
    for (Index begin = 0; begin < n; begin += kBlock) {
      const Index count = begin + kBlock < n ? kBlock : n - begin;
      const float block_top = largest_of(x + begin, count);
      if (block_top > result.largest) {
        result.sum *=
            __builtin_exp(static_cast<double>(result.largest) - static_cast<double>(block_top));
        result.largest = block_top;
        result.argmax = begin + first_index_of(block_top, x + begin, count);
      }
      const V shift = V::fill(result.largest);
      V block{};
      for_lanes(
          count,
          -__builtin_inff(), [&](Index i, auto load, auto store) __attribute__((always_inline)) {
            const V e = exp(load(x + begin + i) - shift);
            visit(begin + i, e, result.largest, store);
            block = block + e;
          });
      result.sum += static_cast<double>(sum(block));
    }
    return result;
  }

  static ExpSum exp_sum(const float* x, Index n) {
    return visit_exponentials(x, n,
                              [](Index, const V&, float, auto) __attribute__((always_inline)){});
  }

  static ExpSum exp_sum_in_place(float* x, float* shifts, Index n) {
    return visit_exponentials(
        x, n, [=](Index i, const V& e, float shift, auto store) __attribute__((always_inline)) {
          store(x + i, e);
          shifts[i / kBlock] = shift;
        });
  }

  static void adafactor_sums(float* column_sums, const float* g, const float* w, Index n,
                             double* g_square, double* w_square) {
    for (Index begin = 0; begin < n; begin += kBlock) {
      V g_block{};
      V w_block{};
      for_lanes(
          begin + kBlock < n ? kBlock : n - begin,
          0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
            const V grad = load(g + begin + i);
            const V value = load(w + begin + i);
            const V square = grad * grad;
            store(column_sums + begin + i, load(column_sums + begin + i) + square);
            g_block = g_block + square;
            w_block = w_block + value * value;
          });
      *g_square += static_cast<double>(sum(g_block));
      *w_square += static_cast<double>(sum(w_block));
    }
  }

  static double product_square_sum(const float* g, const float* f, Index n) {
    return blocked_sum(
        n, [&](Index i, auto load, auto) __attribute__((always_inline)) {
          const V u = load(g + i) * load(f + i);
          return u * u;
        });
  }
};

}  // namespace openmoe::cpu
