// Copies, sums and scaling on the device.
#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;
using openmoe::test::waits_of;

TEST_CASE("zero and copies between host and device", "[cuda]") {
  test::compare_backends(
      [](OpRun& run) {
        const Tensor x = run.normal("x", {5, 7}), y = run.poisoned("y", {5, 7}),
                     z = run.normal("z", {3});
        run.ops().copy(y, x);
        run.ops().zero(z);
        std::vector<float> host(35, 0.0f);
        run.ops().copy(host_view(host.data(), {5, 7}), y);
        CHECK(host == run.read_floats(x));
        run.ops().zero(run.normal("empty", {0, 4}));
      },
      0.0);
}

TEST_CASE("add, multiply and sum of squares at odd sizes", "[cuda]") {
  for (const std::int64_t n : {0, 1, 3, 4, 1023, 4097, 300001})
    for (const bool misaligned : {false, true}) {
      INFO("n " << n << ", misaligned " << misaligned);
      test::compare_backends(
          [=](OpRun& run) {
            const Tensor x = run.normal("x", {n}, 1.0, misaligned),
                         y = run.normal("y", {n}, 1.0, misaligned);
            run.ops().add_accumulate(y, x);
            run.ops().multiply(y, -0.37f);
            run.number("squares", run.ops().sum_of_squares(y));
          },
          1e-6);
    }
}

TEST_CASE("the squares of many tensors are those of each, for few waits of the host", "[cuda]") {
  std::int64_t waits = 0;
  test::compare_backends(
      [&](OpRun& run) {
        std::vector<Tensor> tensors;
        for (std::int64_t i = 0; i < 70; ++i)
          tensors.push_back(run.normal("x" + std::to_string(i), {i % 7 * i * 5}));
        std::vector<double> sums(tensors.size(), -1.0);
        waits = waits_of([&] { run.ops().sums_of_squares(sums, tensors); });
        for (std::size_t i = 0; i < tensors.size(); ++i) {
          CHECK(sums[i] == run.ops().sum_of_squares(tensors[i]));
          run.number("squares", sums[i]);
        }
      },
      1e-6);
  CHECK(waits == 2);  // the device ran last
}

TEST_CASE("convert: both ways, exactly, at odd sizes and places", "[cuda]") {
  for (const std::int64_t n : {0, 1, 7, 8, 9, 1023, 70001})
    for (const bool from_misaligned : {false, true})
      for (const bool to_misaligned : {false, true}) {
        INFO("n " << n << ", misaligned " << from_misaligned << " to " << to_misaligned);
        test::compare_backends([=](OpRun& run) {
          const Tensor wide = run.normal("wide", {n}, 1.0, from_misaligned),
                       narrow = run.normal("narrow", {n}, 1.0, from_misaligned, DType::bf16);
          const Tensor rounded = run.poisoned("rounded", {n}, to_misaligned, DType::bf16),
                       widened = run.poisoned("widened", {n}, to_misaligned);
          run.ops().convert(rounded, wide);
          run.ops().convert(widened, narrow);
          run.exactly(rounded);
          run.exactly(widened);
          CHECK(run.read_floats(widened) == run.read_floats(narrow));
        });
      }
}

TEST_CASE("convert: ties to even, overflow, the smallest numbers, infinities and NaN", "[cuda]") {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {1.0f + 0x1p-8f,     // a tie: down to 1
                                     1.0f + 0x3p-8f,     // a tie: up
                                     1.0f + 0x1.01p-8f,  // above a tie
                                     -1.0f - 0x1p-8f,
                                     std::numeric_limits<float>::max(),
                                     -std::numeric_limits<float>::max(),
                                     std::numeric_limits<float>::denorm_min(),
                                     0x1p-133f,  // the smallest number of bf16
                                     0x1.8p-134f,
                                     -0.0f,
                                     infinity,
                                     -infinity};
  const auto n = static_cast<std::int64_t>(values.size());
  test::compare_backends([&](OpRun& run) {
    const Tensor wide = run.floats("wide", {n}, values),
                 rounded = run.poisoned("rounded", {n}, false, DType::bf16),
                 back = run.poisoned("back", {n});
    run.ops().convert(rounded, wide);
    run.ops().convert(back, rounded);
    run.exactly(rounded);
    run.exactly(back);
    const std::vector<float> result = run.read_floats(back);
    CHECK(result[0] == 1.0f);
    CHECK(result[1] == 1.0f + 0x1p-6f);
    CHECK(result[2] == 1.0f + 0x1p-7f);
    CHECK(result[4] == infinity);
    const Tensor nans = run.poisoned("nans", {3}),
                 narrow = run.normal("narrow", {3}, 1.0, false, DType::bf16);
    run.ops().convert(narrow, nans);
    for (const float value : run.read_floats(narrow)) CHECK(std::isnan(value));
  });
}
