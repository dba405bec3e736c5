// Kernels for any machine: vectors of four floats. Compiled with that instruction set's flags
// (core/CMakeLists.txt).
#include "core/cpu/attention_body.h"
#include "core/cpu/kernels_block.h"
#include "core/cpu/kernels_body.h"
#include "core/cpu/kernels_pack.h"

namespace openmoe::cpu {
namespace {

struct GenericTraits {
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 4;
  static constexpr int kPanelVecs = 2;
  using Vec = body::VectorOf<kLanes>::Float;
  [[gnu::always_inline]] static Vec broadcast(float value) { return value - Vec{}; }
  [[gnu::always_inline]] static Vec multiply_add(Vec acc, Vec a, Vec b) { return acc + a * b; }
};

constexpr CpuKernels kTable{
    body::gemm_kernels<GenericTraits, body::F32Source<GenericTraits>>(),
    body::gemm_kernels<GenericTraits, body::WidenedSource<GenericTraits>>(),
    body::attention_kernels<GenericTraits, body::F32Source<GenericTraits>, float>(),
    body::attention_kernels<GenericTraits, body::WidenedSource<GenericTraits>, BFloat16>(),
    body::convert_kernels<GenericTraits>()};

}  // namespace

const CpuKernels& kernels_generic() {
  return kTable;
}

}  // namespace openmoe::cpu
