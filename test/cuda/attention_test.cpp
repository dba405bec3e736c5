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

void check_attention(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t Dh,
                     const std::vector<std::int32_t>& segments, bool misaligned = false) {
  INFO("B " << B << ", T " << T << ", H " << H << ", Dh " << Dh << ", misaligned " << misaligned);
  test::compare_backends(
      [&](OpRun& run) {
        const Shape shape{B, T, H, Dh};
        const float scale = 1.0f / std::sqrt(static_cast<float>(Dh));
        const Tensor q = run.normal("q", shape, 2.0, misaligned),
                     k = run.normal("k", shape, 1.0, misaligned);
        const Tensor v = run.normal("v", shape, 1.0, misaligned),
                     segment_ids = run.ints("segment_ids", {B, T}, segments);
        const Tensor o = run.poisoned("o", shape), log_z = run.poisoned("log_z", {B, H, T});
        run.ops().attention_forward(o, log_z, q, k, v, segment_ids, scale);
        const Tensor d_o = run.normal("d_o", shape, 1.0, misaligned);
        const Tensor dq = run.poisoned("dq", shape), dk = run.poisoned("dk", shape),
                     dv = run.poisoned("dv", shape);
        run.ops().attention_backward(dq, dk, dv, d_o, q, k, v, o, segment_ids, log_z, scale);
      },
      2e-5);
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
    check_attention(1, T, 2, 6, std::vector<std::int32_t>(static_cast<std::size_t>(T), 1));
}

TEST_CASE("attention: packed segments and padding, every compiled width", "[cuda]") {
  check_attention(2, 70, 2, 32, packed_segments(2, 70));
  check_attention(2, 70, 1, 64, packed_segments(2, 70));
  check_attention(1, 70, 2, 80, packed_segments(1, 70));
  check_attention(1, 40, 1, 130, packed_segments(1, 40));
}

TEST_CASE("attention: unaligned heads, segments out of order, nothing but padding", "[cuda]") {
  check_attention(1, 33, 2, 12, packed_segments(1, 33), true);
  check_attention(1, 6, 1, 4, {2, 1, 2, 0, 1, 3});
  check_attention(1, 70, 1, 4, std::vector<std::int32_t>(70, 0));
  check_attention(0, 8, 1, 4, {});
}
