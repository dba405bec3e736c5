// Sixteen f32 lanes in GCC/Clang vector extensions: the one source of the row kernels for every
// instruction set. Not a general vector library: only what row_kernels_impl.h needs.
//
// kBytes is the width of a register: 16 (any machine), 32 (AVX2) or 64 (AVX-512). There are always
// sixteen lanes, only held in more or fewer registers, and no operation is contracted to FMA; so
// every instruction set gives the same bits. Since kBytes is a template parameter, code compiled
// with the flags of one instruction set is never shared with another.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace openmoe::cpu {

inline constexpr int kLanes = 16;

template <int kBytes>
struct NativeVector;

template <>
struct NativeVector<16> {
  typedef float F32 __attribute__((vector_size(16)));
  typedef std::int32_t I32 __attribute__((vector_size(16)));
  typedef std::uint32_t U32 __attribute__((vector_size(16)));
  typedef std::uint16_t U16 __attribute__((vector_size(8)));
};
template <>
struct NativeVector<32> {
  typedef float F32 __attribute__((vector_size(32)));
  typedef std::int32_t I32 __attribute__((vector_size(32)));
  typedef std::uint32_t U32 __attribute__((vector_size(32)));
  typedef std::uint16_t U16 __attribute__((vector_size(16)));
};
template <>
struct NativeVector<64> {
  typedef float F32 __attribute__((vector_size(64)));
  typedef std::int32_t I32 __attribute__((vector_size(64)));
  typedef std::uint32_t U32 __attribute__((vector_size(64)));
  typedef std::uint16_t U16 __attribute__((vector_size(32)));
};

template <int kBytes>
struct Lanes {
  using F32 = typename NativeVector<kBytes>::F32;
  using I32 = typename NativeVector<kBytes>::I32;
  using U32 = typename NativeVector<kBytes>::U32;
  using U16 = typename NativeVector<kBytes>::U16;
  static constexpr int kParts = 64 / kBytes;
  static constexpr int kPartLanes = kBytes / 4;

  F32 part[kParts];

  [[gnu::always_inline]] static Lanes fill(float value) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) result.part[i] = F32{} + value;
    return result;
  }
  [[gnu::always_inline]] static Lanes load(const float* x) {
    Lanes result;
    __builtin_memcpy(&result, x, sizeof result);
    return result;
  }
  // bf16 in memory is widened, and rounded to nearest even when stored; NaN stays NaN.
  [[gnu::always_inline]] static Lanes load(const BFloat16* x) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) {
      U16 half;
      __builtin_memcpy(&half, x + i * kPartLanes, sizeof half);
      result.part[i] = __builtin_bit_cast(F32, __builtin_convertvector(half, U32) << 16);
    }
    return result;
  }
  [[gnu::always_inline]] void store(BFloat16* x) const {
    for (int i = 0; i < kParts; ++i) {
      const U32 word = __builtin_bit_cast(U32, part[i]);
      const U32 rounded = (word + (0x7fffu + ((word >> 16) & 1u))) >> 16;
      const U32 quiet = (word >> 16) | 0x0040u;
      const U16 half =
          __builtin_convertvector((word & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, U16);
      __builtin_memcpy(static_cast<void*>(x + i * kPartLanes), &half, sizeof half);
    }
  }
  [[gnu::always_inline]] static Lanes load_head(const BFloat16* x, std::int64_t count,
                                                float filler) {
    float wide[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const std::uint32_t word = i < count ? static_cast<std::uint32_t>(x[i].bits) << 16 : 0u;
      wide[i] = i < count ? __builtin_bit_cast(float, word) : filler;
    }
    return load(wide);
  }
  [[gnu::always_inline]] void store_head(BFloat16* x, std::int64_t count) const {
    std::uint16_t half[kLanes];
    store(reinterpret_cast<BFloat16*>(half));
    __builtin_memcpy(static_cast<void*>(x), half,
                     static_cast<std::uint64_t>(count) * sizeof(BFloat16));
  }
  // The first `count` < 16 values of x, the rest `filler`.
  [[gnu::always_inline]] static Lanes load_head(const float* x, std::int64_t count, float filler) {
    Lanes result = fill(filler);
    __builtin_memcpy(&result, x, static_cast<std::uint64_t>(count) * sizeof(float));
    return result;
  }
  [[gnu::always_inline]] void store(float* x) const { __builtin_memcpy(x, this, sizeof *this); }
  [[gnu::always_inline]] void store_head(float* x, std::int64_t count) const {
    __builtin_memcpy(x, this, static_cast<std::uint64_t>(count) * sizeof(float));
  }
};

template <int kBytes>
[[gnu::always_inline]] inline Lanes<kBytes> operator+(Lanes<kBytes> a, const Lanes<kBytes>& b) {
  for (int i = 0; i < Lanes<kBytes>::kParts; ++i) a.part[i] += b.part[i];
  return a;
}
template <int kBytes>
[[gnu::always_inline]] inline Lanes<kBytes> operator-(Lanes<kBytes> a, const Lanes<kBytes>& b) {
  for (int i = 0; i < Lanes<kBytes>::kParts; ++i) a.part[i] -= b.part[i];
  return a;
}
template <int kBytes>
[[gnu::always_inline]] inline Lanes<kBytes> operator*(Lanes<kBytes> a, const Lanes<kBytes>& b) {
  for (int i = 0; i < Lanes<kBytes>::kParts; ++i) a.part[i] *= b.part[i];
  return a;
}
template <int kBytes>
[[gnu::always_inline]] inline Lanes<kBytes> operator/(Lanes<kBytes> a, const Lanes<kBytes>& b) {
  for (int i = 0; i < Lanes<kBytes>::kParts; ++i) a.part[i] /= b.part[i];
  return a;
}

// The larger of a and b per lane; a where a is NaN.
template <int kBytes>
[[gnu::always_inline]] inline Lanes<kBytes> max(Lanes<kBytes> a, const Lanes<kBytes>& b) {
  for (int i = 0; i < Lanes<kBytes>::kParts; ++i)
    a.part[i] = a.part[i] < b.part[i] ? b.part[i] : a.part[i];
  return a;
}

// The lanes added up, always as the same tree.
template <int kBytes>
[[gnu::always_inline]] inline float sum(const Lanes<kBytes>& x) {
  float lane[kLanes];
  x.store(lane);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// The largest lane; a NaN may or may not win.
template <int kBytes>
[[gnu::always_inline]] inline float largest(const Lanes<kBytes>& x) {
  float lane[kLanes];
  x.store(lane);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] < lane[i + width] ? lane[i + width] : lane[i];
  return lane[0];
}

// e^x to about one unit in the last place. x <= -87.3 gives 0, x >= 88 gives e^88 (no caller needs
// more), NaN gives NaN.
//
// x = n ln 2 + r with n an integer and |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q the Chebyshev
// interpolant of degree 4 of (e^r - 1 - r) / r^2 on that interval (truncation error 1.1e-8). n is
// read from the low bits of x / ln 2 + 1.5 * 2^23.
template <int kBytes>
[[gnu::always_inline]] inline Lanes<kBytes> exp(const Lanes<kBytes>& x) {
  using F32 = typename Lanes<kBytes>::F32;
  using I32 = typename Lanes<kBytes>::I32;
  constexpr float kMagic = 12582912.0f;            // 1.5 * 2^23
  constexpr std::int32_t kMagicBits = 0x4b400000;  // its bits
  constexpr float kLowest = -87.3f;
  constexpr float kHighest = 88.0f;
  Lanes<kBytes> result;
  for (int i = 0; i < Lanes<kBytes>::kParts; ++i) {
    const F32 lowest = F32{} + kLowest;
    const F32 highest = F32{} + kHighest;
    F32 v = x.part[i] < lowest ? lowest : x.part[i];
    v = v > highest ? highest : v;
    const F32 shifted = v * 1.44269504f + kMagic;
    const F32 n = shifted - kMagic;
    // ln 2 in two parts, the first short enough for n * it to be exact.
    const F32 r = v - n * 0.693359375f - n * -0.0002121944417f;
    F32 q = 0.00139336183f * r + 0.00836320501f;
    q = q * r + 0.0416664667f;
    q = q * r + 0.166665763f;
    q = q * r + 0.5f;
    const F32 e = (q * (r * r) + r) + 1.0f;
    I32 bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - (kMagicBits - 127)) << 23;
    F32 power;
    __builtin_memcpy(&power, &bits, sizeof power);
    result.part[i] = x.part[i] <= lowest ? F32{} : e * power;
  }
  return result;
}

// 1 / (1 + e^-x)
template <int kBytes>
[[gnu::always_inline]] inline Lanes<kBytes> sigmoid(const Lanes<kBytes>& x) {
  const Lanes<kBytes> one = Lanes<kBytes>::fill(1.0f);
  return one / (one + exp(Lanes<kBytes>{} - x));
}

}  // namespace openmoe::cpu
