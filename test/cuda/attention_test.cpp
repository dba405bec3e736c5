#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

namespace {

// Packed rows: segments of uneven length, the last fifth of every second row padding.
std::vector<std::int32_t> packed_segments(std::int64_t B, std::int64_t T) {
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

struct Case {
  std::int64_t B, T, H, Dh;
  bool misaligned = false;
};

// Normal values in sixteenths, which both types hold exactly.
std::vector<float> sixteenths(const char* name, const Shape& shape, double scale) {
  std::vector<float> values = OpRun::normal_values(name, shape, 16.0 * scale);
  for (float& value : values) value = std::round(value) / 16.0f;
  return values;
}

// Relative to a tensor's largest value. f32: sums of a few hundred terms. bf16: a result is rounded
// once (2^-9), and so are the weights of the products before it and o, from which dq and dk are
// differences; among few keys little else is left of them.
double tolerance_of(Storage storage, std::int64_t num_keys) {
  if (storage == Storage::f32) return 2e-5;
  return num_keys < 16 ? 1.0 / 32 : 1.0 / 128;
}

// Forward and backward against the CPU backend, which reads the same values and computes in f32.
void check_attention(const Case& c, const std::vector<std::int32_t>& segments, Storage storage) {
  const bool rounded = storage == Storage::bf16;
  INFO("B " << c.B << ", T " << c.T << ", H " << c.H << ", Dh " << c.Dh << ", misaligned "
            << c.misaligned << (rounded ? ", bf16" : ", f32"));
  test::compare_backends(
      [&](OpRun& run) {
        const Shape shape{c.B, c.T, c.H, c.Dh};
        const auto stored = [&](const char* name, const std::vector<float>& values) {
          return rounded ? run.bf16(name, shape, values, c.misaligned)
                         : run.floats(name, shape, values, c.misaligned);
        };
        const auto normal = [&](const char* name, double scale) {
          return stored(name, sixteenths(name, shape, scale));
        };
        const auto poisoned = [&](const char* name) {
          return stored(name, std::vector<float>(static_cast<std::size_t>(shape.num_elements()),
                                                 std::numeric_limits<float>::quiet_NaN()));
        };
        const float scale = 1.0f / std::sqrt(static_cast<float>(c.Dh));
        const Tensor q = normal("q", 2.0), k = normal("k", 1.0), v = normal("v", 1.0);
        const Tensor segment_ids = run.ints("segment_ids", {c.B, c.T}, segments);
        const Tensor o = poisoned("o"), log_z = run.poisoned("log_z", {c.B, c.H, c.T});
        run.ops().attention_forward(o, log_z, q, k, v, segment_ids, scale);
        const Tensor d_o = normal("d_o", 1.0);
        const Tensor dq = poisoned("dq"), dk = poisoned("dk"), dv = poisoned("dv");
        run.ops().attention_backward(dq, dk, dv, d_o, q, k, v, o, segment_ids, log_z, scale);
      },
      tolerance_of(storage, c.T));
}

void check_attention(const Case& c, const std::vector<std::int32_t>& segments) {
  check_attention(c, segments, Storage::f32);
  check_attention(c, segments, Storage::bf16);
}

}  // namespace

TEST_CASE("rope: both directions, odd half widths, shorter rows after longer ones", "[cuda]") {
  for (const std::int64_t Dh : {2, 6, 16, 32})
    test::compare_backends(
        [=](OpRun& run) {
          const Tensor longer = run.normal("longer", {2, 9, 3, Dh}),
                       shorter = run.normal("shorter", {3, 4, 1, Dh});
          const Tensor back = run.normal("back", {2, 9, 3, Dh}),
                       empty = run.normal("empty", {0, 4, 2, Dh});
          run.ops().rope_forward(longer, 10000.0f);
          run.ops().rope_forward(shorter, 10000.0f);
          run.ops().rope_backward(back, 500.0f);
          run.ops().rope_forward(empty, 500.0f);
        },
        1e-6);
}

TEST_CASE("attention: one segment, lengths around the tile", "[cuda]") {
  for (const std::int64_t T : {1, 5, 63, 64, 65})
    check_attention({1, T, 2, 6}, std::vector<std::int32_t>(static_cast<std::size_t>(T), 1));
}

TEST_CASE("attention: packed segments and padding, every compiled width", "[cuda]") {
  check_attention({2, 70, 2, 32}, packed_segments(2, 70));
  check_attention({2, 70, 1, 64}, packed_segments(2, 70));
  check_attention({1, 70, 2, 80}, packed_segments(1, 70));
  check_attention({1, 131, 1, 128}, packed_segments(1, 131));
  check_attention({1, 40, 1, 130}, packed_segments(1, 40));
}

TEST_CASE("attention: unaligned heads, segments out of order, nothing but padding", "[cuda]") {
  check_attention({1, 33, 2, 12, true}, packed_segments(1, 33));
  check_attention({1, 33, 2, 64, true}, packed_segments(1, 33));
  check_attention({1, 33, 1, 71}, packed_segments(1, 33));
  check_attention({1, 6, 1, 4}, {2, 1, 2, 0, 1, 3});
  check_attention({1, 70, 1, 4}, std::vector<std::int32_t>(70, 0));
  check_attention({0, 8, 1, 4}, {});
}
