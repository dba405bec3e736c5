#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

TEST_CASE("ffn activations: both kinds, odd widths, part of the rows, in place", "[cuda]") {
  for (const FfnKind kind : {FfnKind::swiglu, FfnKind::gated_swiglu})
    for (const std::int64_t F : {1, 7, 16, 300})
      for (const std::int64_t rows : {0, 2, 5}) {
        INFO("kind " << static_cast<int>(kind) << ", F " << F << ", rows " << rows);
        test::compare_backends(
            [=](OpRun& run) {
              const std::int64_t Fg = kind == FfnKind::gated_swiglu ? 2 * F : F;
              const Tensor gate = run.normal("gate", {5, Fg}, 3.0), up = run.normal("up", {5, F}),
                           h = run.poisoned("h", {5, F});
              run.ops().ffn_activation_forward(h, gate, up, kind, rows);
              const Tensor dgate = run.poisoned("dgate", {5, Fg}),
                           dup = run.poisoned("dup", {5, F}), dh = run.normal("dh", {5, F});
              run.ops().ffn_activation_backward(dgate, dup, dh, gate, up, kind, rows);
              run.ops().ffn_activation_backward(gate, up, dh, gate, up, kind, rows);
            },
            2e-6);
      }
}
