// Kernels for AVX-512 (F, BW, DQ, VL). Compiled with that instruction set's flags
// (core/CMakeLists.txt).
#include "core/cpu/attention_body.h"
#include "core/cpu/kernels_block.h"
#include "core/cpu/kernels_body.h"
#include "core/cpu/kernels_pack.h"

namespace openmoe::cpu {
namespace {

struct Avx512Traits {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 14;
  static constexpr int kPanelVecs = 2;
  using Vec = body::VectorOf<kLanes>::Float;
  [[gnu::always_inline]] static Vec broadcast(float value) { return value - Vec{}; }
  [[gnu::always_inline]] static Vec multiply_add(Vec acc, Vec a, Vec b) { return acc + a * b; }
};

constexpr CpuKernels kTable{
    body::gemm_kernels<Avx512Traits, body::F32Source<Avx512Traits>>(),
    body::gemm_kernels<Avx512Traits, body::WidenedSource<Avx512Traits>>(),
    body::attention_kernels<Avx512Traits, body::F32Source<Avx512Traits>, float>(),
    body::attention_kernels<Avx512Traits, body::WidenedSource<Avx512Traits>, BFloat16>(),
    body::convert_kernels<Avx512Traits>()};

}  // namespace

const CpuKernels& kernels_avx512() {
  return kTable;
}

}  // namespace openmoe::cpu
