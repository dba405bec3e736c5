// Row kernels whose values depend on their own place only. See row_kernels_impl.h.
#pragma once

#include <cstdint>

#include "core/cpu/simd.h"

namespace openmoe::cpu {

template <int kBytes>
struct ElementwiseKernels {
  using V = Lanes<kBytes>;
  using Index = std::int64_t;

  // body(offset, load, store) for sixteen values at a time, the last time for the remaining n % 16,
  // where loads give `filler` beyond the end and stores leave memory beyond the end alone.
  template <class Body>
  [[gnu::always_inline]] static void for_lanes(Index n, float filler, const Body& body) {
    Index i = 0;
    for (; i + kLanes <= n; i += kLanes)
      body(
          i, [](const auto* x) __attribute__((always_inline)) { return V::load(x); },
          [](auto* y, const V& v) __attribute__((always_inline)) { v.store(y); });
    if (const Index rest = n - i; rest > 0)
      body(
          i,
          [=](const auto* x)
              __attribute__((always_inline)) { return V::load_head(x, rest, filler); },
          [=](auto* y, const V& v) __attribute__((always_inline)) { v.store_head(y, rest); });
  }

  template <class S>
  static void add(float* y, const S* x, Index n) {
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, load(y + i) + load(x + i));
        });
  }

  template <class S>
  static void add_scaled(float* y, float a, const S* x, Index n) {
    const V factor = V::fill(a);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, load(y + i) + factor * load(x + i));
        });
  }

  template <class S>
  static void scale(S* y, float a, const float* x, Index n) {
    const V factor = V::fill(a);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, factor * load(x + i));
        });
  }

  template <class S>
  static void swiglu(S* h, const S* gate, const S* up, Index n) {
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V g = load(gate + i);
          store(h + i, g * sigmoid(g) * load(up + i));
        });
  }

  template <class S>
  static void gated_swiglu(S* h, const S* a, const S* b, const S* up, Index n) {
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          const V g = load(b + i);
          store(h + i, load(a + i) * (g * sigmoid(g)) * load(up + i));
        });
  }

  // With s = sigmoid(g): swish(g) = g s and swish'(g) = s + g s (1 - s).
  template <class S>
  static void swiglu_backward(S* dgate, S* dup, const S* dh, const S* gate, const S* up, Index n) {
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

  template <class S>
  static void gated_swiglu_backward(S* da, S* db, S* dup, const S* dh, const S* a, const S* b,
                                    const S* up, Index n) {
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

  template <class S>
  static void rotate(S* x1, S* x2, const float* cos, const float* sin, Index n) {
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

  static void exp_scaled(float* y, const float* x, float shift, float factor, Index n) {
    const V offset = V::fill(shift);
    const V multiplier = V::fill(factor);
    for_lanes(
        n, 0.0f, [&](Index i, auto load, auto store) __attribute__((always_inline)) {
          store(y + i, multiplier * exp(load(x + i) - offset));
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

}  // namespace openmoe::cpu
