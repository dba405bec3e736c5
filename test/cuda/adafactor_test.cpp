#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE(
    "adafactor factored: stacks, odd sizes, several tiles, first and later steps, clipped or not",
    "[cuda]") {
  struct Case {
    std::int64_t stack, R, C;
  };
  for (const Case c :
       {Case{1, 1, 1}, Case{3, 5, 7}, Case{2, 70, 260}, Case{1, 300, 9}, Case{0, 4, 4}})
    for (const double gradient : {1e-4, 1.0}) {
      INFO("stack " << c.stack << ", R " << c.R << ", C " << c.C << ", gradient " << gradient);
      test::compare_backends(
          [=](OpRun& run) {
            const Tensor w = run.normal("w", {c.stack, c.R, c.C}, 0.02),
                         row = run.poisoned("row", {c.stack, c.R});
            const Tensor col = run.poisoned("col", {c.stack, c.C});
            const Tensor rounded =
                run.poisoned("rounded", {c.stack, c.R, c.C}, c.stack == 2, DType::bf16);
            AdafactorScalars scalars;
            scalars.learning_rate = 0.01f;
            for (int step = 0; step < 2; ++step) {
              scalars.decay =
                  step == 0 ? 0.0f : 0.43f;  // the first step reads no state, which is NaN here
              scalars.clip_threshold = step == 0 ? 1.0f : 0.5f;
              const Tensor g =
                  run.normal("g" + std::to_string(step), {c.stack, c.R, c.C}, gradient);
              run.ops().adafactor_factored(w, row, col, g, scalars, nullptr, rounded);
            }
            const std::vector<float> exact = run.read_floats(w), copy = run.read_floats(rounded);
            for (std::size_t i = 0; i < exact.size(); ++i)
              REQUIRE(copy[i] == static_cast<float>(BFloat16(exact[i])));
          },
          5e-6);
    }
}

TEST_CASE("adafactor full: odd sizes, first and later steps", "[cuda]") {
  for (const std::int64_t n : {0, 1, 5, 1000, 140000}) {
    INFO("n " << n);
    test::compare_backends(
        [=](OpRun& run) {
          const Tensor w = run.normal("w", {n}), v = run.poisoned("v", {n});
          AdafactorScalars scalars;
          scalars.learning_rate = 0.01f;
          for (int step = 0; step < 2; ++step) {
            scalars.decay = step == 0 ? 0.0f : 0.43f;
            run.ops().adafactor_full(w, v, run.normal("g" + std::to_string(step), {n}, 0.1),
                                     scalars);
          }
        },
        5e-6);
  }
}
