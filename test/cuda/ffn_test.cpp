#include "test/cuda/op_run.h"

using namespace openmoe;
using openmoe::test::OpRun;

namespace {

void check_ffn(FfnKind kind, std::int64_t F, std::int64_t rows, DType stored,
               bool misaligned = false) {
  INFO("kind " << static_cast<int>(kind) << ", F " << F << ", rows " << rows << ", in "
               << name_of(stored) << ", misaligned " << misaligned);
  test::compare_backends(
      [=](OpRun& run) {
        const std::int64_t Fg = kind == FfnKind::gated_swiglu ? 2 * F : F;
        const auto normal = [&](const char* name, std::int64_t width, double scale) {
          return run.normal(name, {5, width}, scale, misaligned, stored);
        };
        const Tensor gate = normal("gate", Fg, 3.0), up = normal("up", F, 1.0),
                     h = run.poisoned("h", {5, F}, misaligned, stored);
        run.ops().ffn_activation_forward(h, gate, up, kind, rows);
        const Tensor dgate = run.poisoned("dgate", {5, Fg}, misaligned, stored),
                     dup = run.poisoned("dup", {5, F}, misaligned, stored),
                     dh = normal("dh", F, 1.0);
        run.ops().ffn_activation_backward(dgate, dup, dh, gate, up, kind, rows);
        run.ops().ffn_activation_backward(gate, up, dh, gate, up, kind, rows);
      },
      2e-6);
}

}  // namespace

TEST_CASE("ffn activations: both kinds, odd widths, part of the rows, in place", "[cuda]") {
  for (const FfnKind kind : {FfnKind::swiglu, FfnKind::gated_swiglu})
    for (const std::int64_t F : {1, 7, 16, 300})
      for (const std::int64_t rows : {0, 2, 5})
        for (const DType stored : test::kStoredTypes) check_ffn(kind, F, rows, stored);
  for (const DType stored : test::kStoredTypes) {
    check_ffn(FfnKind::swiglu, 64, 5, stored, true);
    check_ffn(FfnKind::gated_swiglu, 64, 5, stored, true);
  }
}
