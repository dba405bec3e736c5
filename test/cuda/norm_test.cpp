#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE("rms_norm: odd sizes, padded rows, more rows than blocks", "[cuda]") {
  struct Case {
    std::int64_t N, D;
    bool misaligned;
  };
  for (const Case c : {Case{0, 8, false}, Case{1, 1, false}, Case{3, 7, false}, Case{5, 64, false},
                       Case{5, 64, true}, Case{17, 1028, false}, Case{1100, 33, false}})
    for (const DType stored : test::kStoredTypes) {
      INFO("N " << c.N << ", D " << c.D << ", misaligned " << c.misaligned << ", y in "
                << name_of(stored));
      test::compare_backends(
          [=](OpRun& run) {
            std::vector<std::int32_t> segments(static_cast<std::size_t>(c.N));
            for (std::size_t n = 0; n < segments.size(); ++n)
              segments[n] = static_cast<std::int32_t>(n % 4);  // every fourth padded
            const Tensor x = run.normal("x", {c.N, c.D}, 3.0, c.misaligned),
                         w = run.normal("w", {c.D});
            const Tensor y = run.poisoned("y", {c.N, c.D}, c.misaligned, stored),
                         rstd = run.poisoned("rstd", {c.N});
            const Tensor segment_ids = run.ints("segment_ids", {c.N}, segments);
            run.ops().rms_norm_forward(y, rstd, x, w, segment_ids, 1e-6f);
            if (stored == DType::bf16) return;  // the gradients are f32
            const Tensor dx = run.normal("dx", {c.N, c.D}), dw = run.normal("dw", {c.D}),
                         dy = run.normal("dy", {c.N, c.D});
            run.ops().rms_norm_backward_accumulate(dx, dw, dy, x, w, segment_ids, rstd);
          },
          5e-6);
    }
}
