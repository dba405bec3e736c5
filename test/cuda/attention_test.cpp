// This program's own kernels: cudnn_attention_test.cpp has cuDNN's.
#include "core/base/error.h"
#include "test/cuda/attention_runs.h"

using namespace openmoe;
using openmoe::test::AttentionCase;
using openmoe::test::OpRun;
using openmoe::test::packed_segments;
using openmoe::test::Storage;

namespace {

void check_attention(const AttentionCase& c, const std::vector<std::int32_t>& segments) {
  for (const Storage storage : {Storage::f32, Storage::bf16}) {
    INFO("B " << c.B << ", T " << c.T << ", H " << c.H << ", Dh " << c.Dh << ", misaligned "
              << c.misaligned << (storage == Storage::bf16 ? ", bf16" : ", f32"));
    test::compare_backends(
        [&](OpRun& run) {
          test::choose(run, AttentionKind::builtin, c, storage);
          test::run_attention(run, c, segments, storage);
        },
        test::attention_tolerance(storage, c.T));
  }
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

TEST_CASE("attention: a device with less shared memory computes what fits, and says what does not",
          "[cuda]") {
  const auto before = cuda_emulation::hardware();
  auto consumer = before;
  consumer.arch = 89;
  cuda_emulation::set_hardware(consumer);
  const auto run_on = [](std::int64_t Dh, Storage storage) -> std::string {
    const auto ops = make_cuda_ops(0);
    OpRun run(*ops);
    const AttentionCase c{1, 20, 1, Dh};
    test::choose(run, AttentionKind::builtin, c, storage);
    try {
      test::run_attention(run, c, packed_segments(1, 20), storage);
    } catch (const RuntimeFault& fault) {
      return fault.what();
    }
    return "";
  };
  CHECK(run_on(128, Storage::bf16) == "");
  CHECK(run_on(32, Storage::f32) == "");
  CHECK_THAT(run_on(64, Storage::f32),
             Catch::Matchers::Contains("needs 105472 bytes of shared memory for each block, and "
                                       "device 0 has 101376") &&
                 Catch::Matchers::Contains("run.compute_type=bf16"));
  cuda_emulation::set_hardware(before);
}
