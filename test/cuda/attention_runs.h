// Attention of both backends on made-up batches, for the tests of whose kernels compute it.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "test/cuda/op_run.h"

namespace openmoe::test {

// Packed rows: segments of uneven length, the last fifth of every second row padding.
inline std::vector<std::int32_t> packed_segments(std::int64_t B, std::int64_t T) {
  std::vector<std::int32_t> ids;
  for (std::int64_t b = 0; b < B; ++b) {
    std::int32_t segment = 1;
    std::int64_t left = 3 + 5 * b;
    for (std::int64_t t = 0; t < T; ++t) {
      const bool padded = b % 2 == 1 && t >= T - T / 5;
      ids.push_back(padded ? 0 : segment);
      if (--left > 0) continue;
      ++segment;
      left = 7 * segment + b;
    }
  }
  return ids;
}

enum class Storage { f32, bf16 };

struct AttentionCase {
  std::int64_t B, T, H, Dh;
  bool misaligned = false;

  Shape shape() const { return {B, T, H, Dh}; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(Dh)); }
};

// Normal values in sixteenths, which both types hold exactly.
inline std::vector<float> sixteenths(const char* name, const Shape& shape, double scale) {
  std::vector<float> values = OpRun::normal_values(name, shape, 16.0 * scale);
  for (float& value : values) value = std::round(value) / 16.0f;
  return values;
}

// Relative to a tensor's largest value. f32: sums of a few hundred terms. bf16: a result is rounded
// once (2^-9), and so are the weights of the products before it and o, from which dq and dk are
// differences; among few keys little else is left of them.
inline double attention_tolerance(Storage storage, std::int64_t num_keys) {
  if (storage == Storage::f32) return 2e-5;
  return num_keys < 16 ? 1.0 / 32 : 1.0 / 128;
}

// Forward and backward.
inline void run_attention(OpRun& run, const AttentionCase& c,
                          const std::vector<std::int32_t>& segments, Storage storage) {
  const Shape shape = c.shape();
  const auto stored = [&](const char* name, const std::vector<float>& values) {
    return storage == Storage::bf16 ? run.bf16(name, shape, values, c.misaligned)
                                    : run.floats(name, shape, values, c.misaligned);
  };
  const auto normal = [&](const char* name, double scale) {
    return stored(name, sixteenths(name, shape, scale));
  };
  const auto poisoned = [&](const char* name) {
    return stored(name, std::vector<float>(static_cast<std::size_t>(shape.num_elements()),
                                           std::numeric_limits<float>::quiet_NaN()));
  };
  const Tensor q = normal("q", 2.0), k = normal("k", 1.0), v = normal("v", 1.0);
  const Tensor segment_ids = run.ints("segment_ids", {c.B, c.T}, segments);
  const Tensor o = poisoned("o"), log_z = run.poisoned("log_z", {c.B, c.H, c.T});
  run.ops().attention_forward(o, log_z, q, k, v, segment_ids, c.scale());
  const Tensor d_o = normal("d_o", 1.0);
  const Tensor dq = poisoned("dq"), dk = poisoned("dk"), dv = poisoned("dv");
  run.ops().attention_backward(dq, dk, dv, d_o, q, k, v, o, segment_ids, log_z, c.scale());
}

// What the device is asked for in advance; the CPU has one kind only.
inline std::string choose(OpRun& run, AttentionKind kind, const AttentionCase& c,
                          Storage storage = Storage::bf16) {
  if (run.ops().device() == Device::host) return "";
  return run.ops().choose_attention(kind,
                                    {.shape = c.shape(),
                                     .dtype = storage == Storage::bf16 ? DType::bf16 : DType::f32,
                                     .scale = c.scale(),
                                     .backward = true});
}

}  // namespace openmoe::test
