// Kernels for AVX-512 (F, BW, DQ, VL). Compiled with that instruction set's flags
// (core/CMakeLists.txt).
#include "core/cpu/attention_body.h"
#include "core/cpu/kernels_body.h"

namespace openmoe::cpu {
namespace {

struct Avx512Traits {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 14;
  static constexpr int kPanelVecs = 2;
  static constexpr int kPerValue = 1;
  [[gnu::always_inline]] static body::Vec<Avx512Traits> multiply_add(body::Vec<Avx512Traits> acc,
                                                                     body::Vec<Avx512Traits> a,
                                                                     body::Vec<Avx512Traits> b) {
    return acc + a * b;
  }
};

constexpr CpuKernels kTable{body::gemm_kernels<Avx512Traits>(),
                            body::attention_kernels<Avx512Traits>()};

}  // namespace

const CpuKernels& kernels_avx512() {
  return kTable;
}

}  // namespace openmoe::cpu
