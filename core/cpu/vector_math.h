// Exponentials without branches or tables, so that loops over them vectorise: one template for
// float and for GCC vectors of floats. Everything is always inlined, because files with different
// instruction sets include this header.
//
// Method: x = n ln 2 + r with |r| <= ln 2 / 2 (n by adding a large constant, which leaves n in the
// low bits of the sum), then e^r by a polynomial of degree 6 fitted to the least relative error
// (3e-9 for e^r, 5e-9 for 2^r before rounding). NaN gives NaN.
#pragma once

#include <cstdint>

namespace openmoe::cpu {

// F: float, or a GCC vector of floats; U: std::uint32_t, or the vector of as many.

// 2^x for x <= 127. Relative error < 1.2e-7 (1 ulp); 0 where the result would be below 2^-126.5.
template <class F, class U>
[[gnu::always_inline]] inline F exp2_approx(F x) {
  const F lowest = -127.0f - F{};
  x = x < lowest ? lowest : x;
  const F shifted = x + (12582912.0f + 127.0f);
  const F r = x - (shifted - (12582912.0f + 127.0f));
  F p = 0.000157855888f * r + 0.0013414548f;
  p = p * r + 0.00961711165f;
  p = p * r + 0.0555027798f;
  p = p * r + 0.240226552f;
  p = p * r + 0.693147242f;
  p = p * r + 1.0f;
  return p * __builtin_bit_cast(F, __builtin_bit_cast(U, shifted) << 23);
}

// e^x. Relative error < 1.8e-7 (2 ulp); infinity above 88.73, 0 where the result would be below
// 2^-125.5.
template <class F, class U>
[[gnu::always_inline]] inline F exp_approx(F x) {
  const F lowest = -87.6f - F{};
  const F highest = 89.0f - F{};
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const F shifted = x * 1.44269504f + (12582912.0f + 126.0f);
  const F n = shifted - (12582912.0f + 126.0f);
  const F r = (x - n * 0.693115234f) - n * 3.19461833e-05f;
  F p = 0.00138389028f * r + 0.00836919248f;
  p = p * r + 0.0416681021f;
  p = p * r + 0.166665167f;
  p = p * r + 0.49999994f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (p + p) * __builtin_bit_cast(F, __builtin_bit_cast(U, shifted) << 23);
}

// e^x for scalar loops, which the compiler vectorises.
[[gnu::always_inline]] inline float fast_exp(float x) {
  return exp_approx<float, std::uint32_t>(x);
}

}  // namespace openmoe::cpu
