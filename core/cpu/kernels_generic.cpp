// Kernels for any machine: vectors of four floats. Compiled with that instruction set's flags
// (core/CMakeLists.txt).
#include "core/cpu/attention_body.h"
#include "core/cpu/kernels_body.h"

namespace openmoe::cpu {
namespace {

struct GenericTraits {
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 4;
  static constexpr int kPanelVecs = 2;
  static constexpr int kPerValue = 1;
  [[gnu::always_inline]] static body::Vec<GenericTraits> multiply_add(body::Vec<GenericTraits> acc,
                                                                      body::Vec<GenericTraits> a,
                                                                      body::Vec<GenericTraits> b) {
    return acc + a * b;
  }
};

constexpr CpuKernels kTable{body::gemm_kernels<GenericTraits>(),
                            body::attention_kernels<GenericTraits>()};

}  // namespace

const CpuKernels& kernels_generic() {
  return kTable;
}

}  // namespace openmoe::cpu
