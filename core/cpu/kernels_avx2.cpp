// Kernels for AVX2 with FMA. Compiled with that instruction set's flags (core/CMakeLists.txt).
#include "core/cpu/attention_body.h"
#include "core/cpu/kernels_body.h"

namespace openmoe::cpu {
namespace {

struct Avx2Traits {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;
  static constexpr int kPanelVecs = 2;
  static constexpr int kPerValue = 1;
  [[gnu::always_inline]] static body::Vec<Avx2Traits> multiply_add(body::Vec<Avx2Traits> acc,
                                                                   body::Vec<Avx2Traits> a,
                                                                   body::Vec<Avx2Traits> b) {
    return acc + a * b;
  }
};

constexpr CpuKernels kTable{body::gemm_kernels<Avx2Traits>(),
                            body::attention_kernels<Avx2Traits>()};

}  // namespace

const CpuKernels& kernels_avx2() {
  return kTable;
}

}  // namespace openmoe::cpu
