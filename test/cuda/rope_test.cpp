#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE("rope: stored in bf16, misaligned heads, nothing at all", "[cuda]") {
  for (const DType stored : test::kStoredTypes)
    for (const std::int64_t Dh : {2, 6, 16, 32, 80})
      for (const bool misaligned : {false, true}) {
        INFO("Dh " << Dh << ", in " << name_of(stored) << ", misaligned " << misaligned);
        test::compare_backends(
            [=](OpRun& run) {
              const auto heads = [&](const char* name, const Shape& shape) {
                return run.normal(name, shape, 1.0, misaligned, stored);
              };
              const Tensor longer = heads("longer", {2, 9, 3, Dh}),
                           shorter = heads("shorter", {3, 4, 1, Dh});
              const Tensor back = heads("back", {2, 9, 3, Dh}),
                           empty = heads("empty", {0, 4, 2, Dh});
              run.ops().rope_forward(longer, 10000.0f);
              run.ops().rope_forward(shorter, 10000.0f);
              run.ops().rope_backward(back, 500.0f);
              run.ops().rope_forward(empty, 500.0f);
            },
            1e-6);
      }
}

TEST_CASE("rope: queries and keys in one launch are as in two", "[cuda]") {
  for (const DType stored : test::kStoredTypes)
    for (const std::int64_t Dh : {6, 16})
      test::compare_backends(
          [=](OpRun& run) {
            const Shape shape{2, 7, 3, Dh};
            const auto heads = [&](const char* name, const char* values, bool misaligned) {
              return run.floats(name, shape, OpRun::normal_values(values, shape), misaligned,
                                stored);
            };
            for (const bool misaligned : {false, true}) {
              const Tensor q = heads("q", "q", false), k = heads("k", "k", misaligned),
                           one_q = heads("one q", "q", false), one_k = heads("one k", "k", false);
              run.ops().rope_forward(q, k, 10000.0f);
              run.ops().rope_forward(one_q, 10000.0f);
              run.ops().rope_forward(one_k, 10000.0f);
              CHECK(run.read_floats(q) == run.read_floats(one_q));
              CHECK(run.read_floats(k) == run.read_floats(one_k));
              const Tensor before = heads("before", "q", false);
              run.ops().rope_backward(q, k, 10000.0f);
              CHECK(test::relative_difference(run.read_floats(q), run.read_floats(before)) <=
                    (stored == DType::f32 ? 1e-6 : 1e-2));
            }
          },
          1e-6);
}
