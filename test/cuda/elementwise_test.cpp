// Copies, sums and scaling on the device.
#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

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
