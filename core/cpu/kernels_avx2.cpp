// Kernels for AVX2 with FMA. Compiled with that instruction set's flags (core/CMakeLists.txt).
#include "core/cpu/attention_body.h"
#include "core/cpu/kernels_block.h"
#include "core/cpu/kernels_body.h"
#include "core/cpu/kernels_pack.h"

namespace openmoe::cpu {
namespace {

struct Avx2Traits {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;
  static constexpr int kPanelVecs = 2;
  using Vec = body::VectorOf<kLanes>::Float;
  [[gnu::always_inline]] static Vec broadcast(float value) { return value - Vec{}; }
  [[gnu::always_inline]] static Vec multiply_add(Vec acc, Vec a, Vec b) { return acc + a * b; }
};

constexpr CpuKernels kTable{
    body::gemm_kernels<Avx2Traits, body::F32Source<Avx2Traits>>(),
    body::gemm_kernels<Avx2Traits, body::WidenedSource<Avx2Traits>>(),
    body::attention_kernels<Avx2Traits, body::F32Source<Avx2Traits>, float>(),
    body::attention_kernels<Avx2Traits, body::WidenedSource<Avx2Traits>, BFloat16>(),
    body::convert_kernels<Avx2Traits>()};

}  // namespace

const CpuKernels& kernels_avx2() {
  return kTable;
}

}  // namespace openmoe::cpu
