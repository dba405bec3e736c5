// The bodies behind row_kernels.h, on sixteen lanes (simd.h). Included by the translation units of
// the instruction sets only; uses nothing of the standard library, whose inline functions would
// otherwise be compiled with their flags.
#pragma once

#include <cstdint>

#include "core/cpu/row_kernels.h"
#include "core/cpu/simd.h"

namespace openmoe::cpu {

template <int kBytes>
struct RowKernelsImpl {
  using V = Lanes<kBytes>;
  using Index = std::int64_t;

  // body(offset, load, store) for sixteen values at a time, the last time for the remaining n % 16,
  // where loads give `filler` beyond the end and stores leave memory beyond the end alone.
  template <class Body>
  [[gnu::always_inline]] static void for_lanes(Index n, float filler, const Body& body) {
    Index i = 0;
    for (; i + kLanes <= n; i += kLanes)
      body(
          i, [](const float* x) __attribute__((always_inline)) { return V::load(x); },
          [](float* y, const V& v) __attribute__((always_inline)) { v.store(y); });
    if (const Index rest = n - i; rest > 0)
      body(
          i,
          [=](const float* x)
              __attribute__((always_inline)) { return V::load_head(x, rest, filler); },
          [=](float* y, const V& v) __attribute__((always_inline)) { v.store_head(y, rest); });
  }

  static void add(float* y, const float* x, Index n) {
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, load(y + i) + load(x + i));
        });
  }

  static void add_scaled(float* y, float a, const float* x, Index n) {
    const V factor = V::fill(a);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, load(y + i) + factor * load(x + i));
        });
  }

  static void scale(float* y, float a, const float* x, Index n) {
    const V factor = V::fill(a);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, factor * load(x + i));
        });
  }

  static float dot(const float* a, const float* b, Index n) {
    V total{};
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto) __attribute__((always_inline)) {
          total = total + load(a + i) * load(b + i);
        });
    return sum(total);
  }

  // Lanes run for at most this many values before they are emptied into an f64.
  static constexpr Index kBlock = 1024;

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

  static float rms_norm(float* y, const float* x, const float* w, float eps, Index n) {
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

  static void swiglu(float* h, const float* gate, const float* up, Index n) {
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V g = load(gate + i);
          store(h + i, g * sigmoid(g) * load(up + i));
        });
  }

  static void gated_swiglu(float* h, const float* a, const float* b, const float* up, Index n) {
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V g = load(b + i);
          store(h + i, load(a + i) * (g * sigmoid(g)) * load(up + i));
        });
  }

  // With s = sigmoid(g): swish(g) = g s and swish'(g) = s + g s (1 - s).
  static void swiglu_backward(float* dgate, float* dup, const float* dh, const float* gate,
                              const float* up, Index n) {
    const V one = V::fill(1.0f);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V g = load(gate + i);
          const V grad = load(dh + i);
          const V s = sigmoid(g);
          const V swish = g * s;
          const V dg = grad * load(up + i) * (s + swish * (one - s));
          store(dup + i, grad * swish);
          store(dgate + i, dg);
        });
  }

  static void gated_swiglu_backward(float* da, float* db, float* dup, const float* dh,
                                    const float* a, const float* b, const float* up, Index n) {
    const V one = V::fill(1.0f);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V linear = load(a + i);
          const V g = load(b + i);
          const V u = load(up + i);
          const V grad = load(dh + i);
          const V s = sigmoid(g);
          const V swish = g * s;
          store(da + i, grad * swish * u);
          store(db + i, grad * linear * u * (s + swish * (one - s)));
          store(dup + i, grad * linear * swish);
        });
  }

  static void rotate(float* x1, float* x2, const float* cos, const float* sin, Index n) {
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V a = load(x1 + i);
          const V b = load(x2 + i);
          const V c = load(cos + i);
          const V s = load(sin + i);
          store(x1 + i, a * c - b * s);
          store(x2 + i, b * c + a * s);
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

  // Block by block, each read twice but the second time from the first-level cache; the sum so far
  // is rescaled when a block raises the maximum (Milakov and Gimelshein 2018).
  static void exp_sum(const float* x, Index n, float* largest_out, double* sum_out) {
    float top = -__builtin_inff();
    double total = 0.0;
    for (Index begin = 0; begin < n; begin += kBlock) {
      const Index count = begin + kBlock < n ? kBlock : n - begin;
      const float block_top = largest_of(x + begin, count);
      if (block_top > top) {
        total *= __builtin_exp(static_cast<double>(top) - static_cast<double>(block_top));
        top = block_top;
      }
      const V shift = V::fill(top);
      V block{};
      for_lanes(
          count, -__builtin_inff(), [&](Index i, auto load, auto) __attribute__((always_inline)) {
            block = block + exp(load(x + begin + i) - shift);
          });
      total += static_cast<double>(sum(block));
    }
    *largest_out = top;
    *sum_out = total;
  }

  static void exp_scaled(float* y, const float* x, float shift, float factor, Index n) {
    const V offset = V::fill(shift);
    const V multiplier = V::fill(factor);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, multiplier * exp(load(x + i) - offset));
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

  static void subtract_scaled_product(float* w, float a, const float* g, const float* f, Index n) {
    const V factor = V::fill(a);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(w + i, load(w + i) - factor * (load(g + i) * load(f + i)));
        });
  }
};

template <int kBytes>
constexpr RowKernels make_row_kernels() {
  using Impl = RowKernelsImpl<kBytes>;
  return RowKernels{
      .add = Impl::add,
      .add_scaled = Impl::add_scaled,
      .scale = Impl::scale,
      .dot = Impl::dot,
      .sum_of_squares = Impl::sum_of_squares,
      .rms_norm = Impl::rms_norm,
      .rms_norm_backward = Impl::rms_norm_backward,
      .swiglu = Impl::swiglu,
      .gated_swiglu = Impl::gated_swiglu,
      .swiglu_backward = Impl::swiglu_backward,
      .gated_swiglu_backward = Impl::gated_swiglu_backward,
      .rotate = Impl::rotate,
      .exp_sum = Impl::exp_sum,
      .exp_scaled = Impl::exp_scaled,
      .adafactor_sums = Impl::adafactor_sums,
      .product_square_sum = Impl::product_square_sum,
      .subtract_scaled_product = Impl::subtract_scaled_product,
  };
}

}  // namespace openmoe::cpu
