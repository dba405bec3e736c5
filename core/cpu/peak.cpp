#include "core/cpu/peak.h"

#include <chrono>
#include <cstdint>

#include "core/cpu/cpu_features.h"

namespace openmoe::cpu {
namespace {

// One round of each loop: independent multiply-adds into every accumulator register, enough of them
// to hide the latency of two FMA units. Written as assembly because a compiler spills the
// accumulators of the same loop in C.
#if defined(__x86_64__)
#define OPENMOE_FMA(width, a, b, acc) "vfmadd231ps %%" width a ",%%" width b ",%%" width acc "\n"
#define OPENMOE_FMA4(width, a, b, x) \
  OPENMOE_FMA(width, a, b, x "0")    \
  OPENMOE_FMA(width, a, b, x "1") OPENMOE_FMA(width, a, b, x "2") OPENMOE_FMA(width, a, b, x "3")

constexpr double kAvx512Flops = 24 * 16 * 2;
__attribute__((target("avx512f"), noinline)) void avx512_rounds(std::int64_t rounds) {
  asm volatile(
      "vpxorq %%zmm30,%%zmm30,%%zmm30\n"
      "vpxorq %%zmm31,%%zmm31,%%zmm31\n"
      "1:\n" OPENMOE_FMA4("zmm", "30", "31", "") OPENMOE_FMA("zmm", "30", "31", "4")
          OPENMOE_FMA("zmm", "30", "31", "5") OPENMOE_FMA("zmm", "30", "31", "6")
              OPENMOE_FMA("zmm", "30", "31", "7") OPENMOE_FMA("zmm", "30", "31", "8")
                  OPENMOE_FMA("zmm", "30", "31", "9") OPENMOE_FMA4("zmm", "30", "31", "1")
                      OPENMOE_FMA("zmm", "30", "31", "14") OPENMOE_FMA("zmm", "30", "31", "15")
                          OPENMOE_FMA("zmm", "30", "31", "16") OPENMOE_FMA("zmm", "30", "31", "17")
                              OPENMOE_FMA("zmm", "30", "31", "18")
                                  OPENMOE_FMA("zmm", "30", "31", "19")
                                      OPENMOE_FMA4("zmm", "30", "31", "2")
      "dec %0\n"
      "jg 1b\n"
      "vzeroupper\n"
      : "+r"(rounds)
      :
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19",
        "xmm20", "xmm21", "xmm22", "xmm23", "xmm30", "xmm31");
}

constexpr double kAvx2Flops = 12 * 8 * 2;
__attribute__((target("avx2,fma"), noinline)) void avx2_rounds(std::int64_t rounds) {
  asm volatile(
      "vxorps %%ymm14,%%ymm14,%%ymm14\n"
      "vxorps %%ymm15,%%ymm15,%%ymm15\n"
      "1:\n" OPENMOE_FMA4("ymm", "14", "15", "") OPENMOE_FMA("ymm", "14", "15", "4")
          OPENMOE_FMA("ymm", "14", "15", "5") OPENMOE_FMA("ymm", "14", "15", "6")
              OPENMOE_FMA("ymm", "14", "15", "7") OPENMOE_FMA("ymm", "14", "15", "8")
                  OPENMOE_FMA("ymm", "14", "15", "9") OPENMOE_FMA("ymm", "14", "15", "10")
                      OPENMOE_FMA("ymm", "14", "15", "11")
      "dec %0\n"
      "jg 1b\n"
      "vzeroupper\n"
      : "+r"(rounds)
      :
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm14", "xmm15");
}
#undef OPENMOE_FMA4
#undef OPENMOE_FMA
#endif

constexpr double kGenericFlops = 8 * 4 * 2;
__attribute__((noinline)) void generic_rounds(std::int64_t rounds) {
  typedef float Vector __attribute__((vector_size(16)));
  Vector sums[8] = {};
  const Vector scale = Vector{} + 0.999f;
  for (std::int64_t i = 0; i < rounds; ++i)
    for (Vector& sum : sums) sum = sum * scale + scale;
  float total = 0.0f;
  for (const Vector& sum : sums) total += sum[0];
  [[maybe_unused]] volatile float kept = total;  // so that the loop is not optimised away
}

}  // namespace

double measure_peak_flops(double seconds) {
  using Clock = std::chrono::steady_clock;
  void (*run)(std::int64_t) = generic_rounds;
  double flops_per_round = kGenericFlops;
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) {
    run = avx512_rounds;
    flops_per_round = kAvx512Flops;
  } else if (cpu_isa() >= CpuIsa::avx2) {
    run = avx2_rounds;
    flops_per_round = kAvx2Flops;
  }
#endif
  constexpr std::int64_t kSlice =
      20000;  // rounds between looks at the clock: a fraction of a millisecond
  double rounds = 0.0;
  const auto begin = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
#pragma omp parallel reduction(+ : rounds)
  do {
    run(kSlice);
    rounds += static_cast<double>(kSlice);
  } while (elapsed() < seconds);
  return rounds * flops_per_round / elapsed();
}

}  // namespace openmoe::cpu
