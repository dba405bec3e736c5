#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE("linear: every product at odd sizes, and empty ones", "[cuda]") {
  struct Case {
    std::int64_t N, in, out;
  };
  for (const Case c : {Case{1, 1, 1}, Case{5, 7, 3}, Case{33, 64, 48}, Case{0, 4, 6}, Case{4, 6, 0},
                       Case{65, 17, 130}})
    for (const bool misaligned : {false, true}) {
      INFO("N " << c.N << ", in " << c.in << ", out " << c.out << ", misaligned " << misaligned);
      test::compare_backends([=](OpRun& run) {
        Ops& ops = run.ops();
        const Tensor x = run.normal("x", {c.N, c.in}, 1.0, misaligned),
                     w = run.normal("w", {c.out, c.in}, 1.0, misaligned);
        const Tensor y = run.poisoned("y", {c.N, c.out}, misaligned),
                     y_sum = run.normal("y_sum", {c.N, c.out}, 1.0, misaligned);
        ops.linear_forward(y, x, w);
        ops.linear_forward_accumulate(y_sum, x, w);
        const Tensor dy = run.normal("dy", {c.N, c.out}, 1.0, misaligned);
        const Tensor dx = run.poisoned("dx", {c.N, c.in}, misaligned),
                     dx_sum = run.normal("dx_sum", {c.N, c.in});
        const Tensor dw = run.normal("dw", {c.out, c.in}, 1.0, misaligned);
        ops.linear_backward_input(dx, dy, w);
        ops.linear_backward_input_accumulate(dx_sum, dy, w);
        ops.linear_backward_weight(dw, dy, x);
      });
    }
}

TEST_CASE("linear: an empty sum is zero", "[cuda]") {
  test::compare_backends([](OpRun& run) {
    const Tensor x = run.normal("x", {3, 0}), w = run.normal("w", {2, 0}),
                 y = run.poisoned("y", {3, 2});
    const Tensor y_sum = run.normal("y_sum", {3, 2});
    run.ops().linear_forward(y, x, w);
    run.ops().linear_forward_accumulate(y_sum, x, w);
  });
}

TEST_CASE(
    "grouped products: empty experts, one expert, rows beyond the last, more experts than one "
    "batch",
    "[cuda]") {
  const std::vector<std::vector<std::int64_t>> cases = {
      {0, 3, 3, 10, 11}, {0, 0, 0, 0}, {0, 13}, {2, 5, 5, 9}, std::vector<std::int64_t>(71, 0)};
  for (const std::vector<std::int64_t>& given : cases)
    for (const std::int64_t width : {5, 8}) {
      std::vector<std::int64_t> offsets = given;
      if (offsets.size() > 70)  // experts with 0, 1, 2, 0, 1, 2, ... rows
        for (std::size_t g = 1; g < offsets.size(); ++g)
          offsets[g] = offsets[g - 1] + static_cast<std::int64_t>((g - 1) % 3);
      const std::int64_t in = width, out = width + 3,
                         El = static_cast<std::int64_t>(offsets.size()) - 1, M = offsets.back() + 4;
      INFO("experts " << El << ", width " << width);
      test::compare_backends([&](OpRun& run) {
        Ops& ops = run.ops();
        const Tensor bounds = host_view(offsets.data(), {El + 1});
        const Tensor x = run.normal("x", {M, in}), w = run.normal("w", {El, in, out}),
                     y = run.poisoned("y", {M, out});
        ops.grouped_matmul_forward(y, x, w, bounds);
        const Tensor dy = run.normal("dy", {M, out}), dx = run.poisoned("dx", {M, in}),
                     dx_sum = run.normal("dx_sum", {M, in});
        const Tensor dw = run.normal("dw", {El, in, out});
        ops.grouped_matmul_backward_input(dx, dy, w, bounds);
        ops.grouped_matmul_backward_input_accumulate(dx_sum, dy, w, bounds);
        ops.grouped_matmul_backward_weight(dw, dy, x, bounds);
      });
    }
}
