#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

namespace {

// Types of a product: both operands, and its result; gradients of weights are f32 always.
struct Types {
  DType operands, result;
};
constexpr Types kTypes[] = {
    {DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}};

std::string text_of(const Types& types) {
  return std::string(name_of(types.operands)) + " to " + name_of(types.result);
}

}  // namespace

TEST_CASE("linear: every product at odd sizes, and empty ones", "[cuda]") {
  struct Case {
    std::int64_t N, in, out;
  };
  for (const Case c : {Case{1, 1, 1}, Case{5, 7, 3}, Case{33, 64, 48}, Case{0, 4, 6}, Case{4, 6, 0},
                       Case{65, 17, 130}})
    for (const Types& types : kTypes)
      for (const bool misaligned : {false, true}) {
        INFO("N " << c.N << ", in " << c.in << ", out " << c.out << ", " << text_of(types)
                  << ", misaligned " << misaligned);
        test::compare_backends([=](OpRun& run) {
          Ops& ops = run.ops();
          const auto operand = [&](const char* name, const Shape& shape) {
            return run.normal(name, shape, 1.0, misaligned, types.operands);
          };
          const Tensor x = operand("x", {c.N, c.in}), w = operand("w", {c.out, c.in});
          const Tensor y = run.poisoned("y", {c.N, c.out}, misaligned, types.result),
                       y_sum = run.normal("y_sum", {c.N, c.out}, 1.0, misaligned, types.result);
          ops.linear_forward(y, x, w);
          ops.linear_forward_accumulate(y_sum, x, w);
          const Tensor dy = operand("dy", {c.N, c.out});
          const Tensor dx = run.poisoned("dx", {c.N, c.in}, misaligned, types.result),
                       dx_sum = run.normal("dx_sum", {c.N, c.in}, 1.0, false, types.result);
          const Tensor dw = run.normal("dw", {c.out, c.in}, 1.0, misaligned);
          ops.linear_backward_input(dx, dy, w);
          ops.linear_backward_input_accumulate(dx_sum, dy, w);
          ops.linear_backward_weight(dw, dy, x);
        });
      }
}

TEST_CASE("linear: an empty sum is zero", "[cuda]") {
  for (const Types& types : kTypes)
    test::compare_backends([&](OpRun& run) {
      const Tensor x = run.normal("x", {3, 0}, 1.0, false, types.operands),
                   w = run.normal("w", {2, 0}, 1.0, false, types.operands),
                   y = run.poisoned("y", {3, 2}, false, types.result);
      const Tensor y_sum = run.normal("y_sum", {3, 2}, 1.0, false, types.result);
      run.ops().linear_forward(y, x, w);
      run.ops().linear_forward_accumulate(y_sum, x, w);
      run.exactly(y);
      run.exactly(y_sum);
    });
}

namespace {

void check_grouped(std::vector<std::int64_t> offsets, std::int64_t in, std::int64_t out,
                   const Types& types, bool misaligned = false) {
  const std::int64_t El = static_cast<std::int64_t>(offsets.size()) - 1, M = offsets.back() + 4;
  INFO("experts " << El << ", rows " << offsets.back() << ", in " << in << ", out " << out << ", "
                  << text_of(types) << ", misaligned " << misaligned);
  test::compare_backends([&](OpRun& run) {
    Ops& ops = run.ops();
    const Tensor bounds = host_view(offsets.data(), {El + 1});
    const auto operand = [&](const char* name, const Shape& shape) {
      return run.normal(name, shape, 1.0, misaligned, types.operands);
    };
    const Tensor x = operand("x", {M, in}), w = operand("w", {El, in, out}),
                 y = run.poisoned("y", {M, out}, misaligned, types.result);
    ops.grouped_matmul_forward(y, x, w, bounds);
    const Tensor dy = operand("dy", {M, out}),
                 dx = run.poisoned("dx", {M, in}, misaligned, types.result),
                 dx_sum = run.normal("dx_sum", {M, in}, 1.0, misaligned, types.result);
    const Tensor dw = run.normal("dw", {El, in, out}, 1.0, misaligned);
    ops.grouped_matmul_backward_input(dx, dy, w, bounds);
    ops.grouped_matmul_backward_input_accumulate(dx_sum, dy, w, bounds);
    ops.grouped_matmul_backward_weight(dw, dy, x, bounds);
  });
}

}  // namespace

TEST_CASE(
    "grouped products: empty experts, one expert, rows beyond the last, more experts than one "
    "batch",
    "[cuda]") {
  const std::vector<std::vector<std::int64_t>> cases = {
      {0, 3, 3, 10, 11}, {0, 0, 0, 0}, {0, 13}, {2, 5, 5, 9}, std::vector<std::int64_t>(71, 0)};
  for (const std::vector<std::int64_t>& given : cases)
    for (const std::int64_t width : {5, 8})
      for (const Types& types : kTypes) {
        std::vector<std::int64_t> offsets = given;
        if (offsets.size() > 70)  // experts with 0, 1, 2, 0, 1, 2, ... rows
          for (std::size_t g = 1; g < offsets.size(); ++g)
            offsets[g] = offsets[g - 1] + static_cast<std::int64_t>((g - 1) % 3);
        check_grouped(offsets, width, width + 3, types);
      }
}

TEST_CASE("grouped products: rows that begin at any place, wide experts", "[cuda]") {
  for (const Types& types : kTypes) {
    check_grouped({0, 3, 7, 12}, 16, 24, types, true);
    check_grouped({1, 4, 70, 70, 83}, 72, 136, types);
  }
}
