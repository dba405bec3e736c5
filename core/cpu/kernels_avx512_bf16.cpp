// Kernels for AVX-512 with bf16 dot products: those of AVX-512, except the products of bf16
// operands. Compiled with that instruction set's flags (core/CMakeLists.txt).
#include <immintrin.h>

#include "core/cpu/kernels_block.h"
#include "core/cpu/kernels_body.h"
#include "core/cpu/kernels_pack.h"

namespace openmoe::cpu {
namespace {

// A packed value is a pair of neighbours along k; one instruction adds both products.
struct Bf16Traits {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 14;
  static constexpr int kPanelVecs = 2;
  using Vec = body::VectorOf<kLanes>::Float;
  [[gnu::always_inline]] static Vec broadcast(float pair) { return _mm512_set1_ps(pair); }
  [[gnu::always_inline]] static Vec multiply_add(Vec acc, Vec a, Vec b) {
    return _mm512_dpbf16_ps(acc, __builtin_bit_cast(__m512bh, a), __builtin_bit_cast(__m512bh, b));
  }
};

}  // namespace

const CpuKernels& kernels_avx512_bf16() {
  static const CpuKernels table{
      kernels_avx512().f32, body::gemm_kernels<Bf16Traits, body::PairSource<Bf16Traits>>(),
      kernels_avx512().attention, kernels_avx512().attention_bf16, kernels_avx512().convert};
  return table;
}

}  // namespace openmoe::cpu
