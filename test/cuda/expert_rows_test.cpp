#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE("expert rows: gather, combine and their backward; dropped choices, no rows", "[cuda]") {
  const std::vector<std::int32_t> assignment = {3, 0, -1, 5, 1, -1, -1, -1, 2, 4},
                                  token = {0, 2, 4, 0, 4, 1};
  for (const std::int64_t D : {1, 6, 8, 260})
    for (const bool misaligned : {false, true})
      for (const DType stored : test::kStoredTypes) {
        INFO("D " << D << ", misaligned " << misaligned << ", rows in " << name_of(stored));
        test::compare_backends(
            [&](OpRun& run) {
              Ops& ops = run.ops();
              const Tensor row_token = run.ints("row_token", {6}, token),
                           assignment_row = run.ints("assignment_row", {5, 2}, assignment);
              const Tensor x = run.normal("x", {5, D}, 1.0, misaligned, stored),
                           rows = run.poisoned("rows", {6, D}, false, stored);
              const Tensor some = run.poisoned("some", {6, D}, false, stored),
                           gate = run.normal("gate", {5, 2});
              ops.gather_rows(rows, x, row_token, 6);
              ops.gather_rows(some, x, row_token, 4);
              ops.gather_rows(some, x, row_token, 0);
              run.exactly(rows);
              run.exactly(some);
              const Tensor y = run.normal("y", {5, D}),
                           out = run.normal("out", {6, D}, 1.0, misaligned, stored);
              ops.combine_rows_forward_accumulate(y, out, gate, assignment_row);
              const Tensor drows = run.poisoned("drows", {6, D}, misaligned, stored),
                           dgate = run.poisoned("dgate", {5, 2}), dy = run.normal("dy", {5, D});
              ops.combine_rows_backward(drows, dgate, dy, out, gate, assignment_row);
              run.exactly(drows);  // one product each
              const Tensor dx = run.normal("dx", {5, D});
              ops.gather_rows_backward_accumulate(dx, drows, assignment_row);
            },
            2e-6);
      }
  test::compare_backends([](OpRun& run) {
    const Tensor none = run.normal("none", {0, 4}), no_rows = run.ints("no_rows", {0, 2}, {}),
                 gate = run.normal("gate", {0, 2});
    run.ops().combine_rows_forward_accumulate(none, none, gate, no_rows);
    run.ops().gather_rows_backward_accumulate(none, none, no_rows);
  });
}
