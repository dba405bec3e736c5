// Micro-benchmark of the matrix products and of attention: each sample stands between two runs of a
// register-only FMA loop and is reported as a share of that paired peak, because the clock and the
// cores of a shared machine change by the second.
//   openmoe_bench_gemm [group ...]     groups: large expert head router attention (default: all)
//   OMP_NUM_THREADS, OPENMOE_CPU_ISA choose threads and kernels;
//   OPENMOE_BENCH_BLAS=<libopenblas.so> adds that library.
#include <dlfcn.h>
#include <omp.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/cpu/cpu_features.h"
#include "core/cpu/gemm.h"

using namespace openmoe;
using namespace openmoe::cpu;

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// CPU time of all threads of this process. Waiting threads spin, so that lost time of a team
// counts; time taken by other processes does not.
double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// 24 independent accumulators in registers: nothing but the FMA units limits it. 768 (AVX-512) or
// 192 (AVX2, 12 accumulators) floating-point operations a round.
#define OPENMOE_FMA(i) "vfmadd231ps %%zmm24,%%zmm25,%%zmm" #i "\n"
[[gnu::noinline]] void fma_rounds_avx512(long rounds) {
  asm volatile("vpxorq %%zmm24,%%zmm24,%%zmm24\nvpxorq %%zmm25,%%zmm25,%%zmm25\n1:\n" OPENMOE_FMA(0)
                   OPENMOE_FMA(1) OPENMOE_FMA(2) OPENMOE_FMA(3) OPENMOE_FMA(4) OPENMOE_FMA(5)
                       OPENMOE_FMA(6) OPENMOE_FMA(7) OPENMOE_FMA(8) OPENMOE_FMA(9) OPENMOE_FMA(10)
                           OPENMOE_FMA(11) OPENMOE_FMA(12) OPENMOE_FMA(13) OPENMOE_FMA(14)
                               OPENMOE_FMA(15) OPENMOE_FMA(16) OPENMOE_FMA(17) OPENMOE_FMA(18)
                                   OPENMOE_FMA(19) OPENMOE_FMA(20) OPENMOE_FMA(21) OPENMOE_FMA(22)
                                       OPENMOE_FMA(23) "dec %0\njg 1b\nvzeroupper\n"
               : "+r"(rounds)
               :
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                 "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
#undef OPENMOE_FMA
#define OPENMOE_FMA(i) "vfmadd231ps %%ymm14,%%ymm15,%%ymm" #i "\n"
[[gnu::noinline]] void fma_rounds_avx2(long rounds) {
  asm volatile("vxorps %%ymm14,%%ymm14,%%ymm14\nvxorps %%ymm15,%%ymm15,%%ymm15\n1:\n" OPENMOE_FMA(0)
                   OPENMOE_FMA(1) OPENMOE_FMA(2) OPENMOE_FMA(3) OPENMOE_FMA(4) OPENMOE_FMA(5)
                       OPENMOE_FMA(6) OPENMOE_FMA(7) OPENMOE_FMA(8) OPENMOE_FMA(9) OPENMOE_FMA(10)
                           OPENMOE_FMA(11) "dec %0\njg 1b\nvzeroupper\n"
               : "+r"(rounds)
               :
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                 "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
#undef OPENMOE_FMA

// Seconds of wall time and seconds of own CPU time per thread.
struct Elapsed {
  double wall, cpu;
  static Elapsed of(const std::function<void()>& work) {
    const double start = seconds(), cpu_start = cpu_seconds();
    work();
    return {seconds() - start, (cpu_seconds() - cpu_start) / omp_get_max_threads()};
  }
};

// FLOP/s of all threads together, per own CPU second; the loop runs for about 5 ms.
double peak_flops() {
  const bool avx512 = best_cpu_isa() >= CpuIsa::avx512;
  const long rounds = avx512 ? 600'000 : 1'200'000;
  const int threads = omp_get_max_threads();
  const Elapsed time = Elapsed::of([&] {
#pragma omp parallel num_threads(threads)
    {
      if (avx512)
        fma_rounds_avx512(rounds);
      else
        fma_rounds_avx2(rounds);
    }
  });
  return (avx512 ? 768.0 : 192.0) * static_cast<double>(rounds) * threads / time.cpu;
}

struct Result {
  double share = 0.0, gflops = 0.0, peak_gflops = 0.0, cpu_use = 0.0;
  int samples = 0;
};

// The median of 7 samples, by own CPU time. cpu_use: own CPU time of that sample as a part of
// threads x wall time; a figure well below 1 says that other processes took the cores, and that
// their traces in the caches are in the result.
Result measure(double flops, const std::function<void()>& work) {
  work();
  struct Sample {
    double share, rate, use;
  };
  std::vector<Sample> samples;
  double peak_before = peak_flops();
  const double limit = seconds() + 10.0;
  const double once = Elapsed::of(work).cpu;
  const int repeats = std::max(1, static_cast<int>(0.02 / once));
  while (samples.size() < 7 && (samples.empty() || seconds() < limit)) {
    const Elapsed time = Elapsed::of([&] {
      for (int i = 0; i < repeats; ++i) work();
    });
    const double peak_after = peak_flops();
    const double rate = flops * repeats / time.cpu;
    samples.push_back({rate / (0.5 * (peak_before + peak_after)), rate, time.cpu / time.wall});
    peak_before = peak_after;
  }
  std::sort(samples.begin(), samples.end(),
            [](const Sample& x, const Sample& y) { return x.share < y.share; });
  const Sample& middle = samples[samples.size() / 2];
  return {middle.share, middle.rate * 1e-9, middle.rate / middle.share * 1e-9, middle.use,
          static_cast<int>(samples.size())};
}

using Sgemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                       const float* a, int lda, const float* b, int ldb, float beta, float* c,
                       int ldc);
Sgemm g_blas = nullptr;

void report(const char* group, const std::string& what, const Result& own, const Result& blas) {
  std::printf("%-9s %-36s %6.3f of peak %8.1f GF/s (peak %6.1f, cpu use %.2f, n %d)", group,
              what.c_str(), own.share, own.gflops, own.peak_gflops, own.cpu_use, own.samples);
  if (blas.samples > 0) std::printf("   blas %6.3f", blas.share);
  std::printf("\n");
  std::fflush(stdout);
}

std::vector<float> random_values(std::int64_t size) {
  std::vector<float> values(static_cast<std::size_t>(size));
  std::uint32_t state = 12345;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<double>(state >> 8) / 16777216.0 - 0.5);
  }
  return values;
}

// NN: forward, NT: gradient of the input, TN: gradient of the weight.
void bench_product(const char* group, std::int64_t m, std::int64_t n, std::int64_t k,
                   const char* form, bool accumulate) {
  const bool ta = form[0] == 'T', tb = form[1] == 'T';
  const std::vector<float> a = random_values(m * k), b = random_values(k * n);
  std::vector<float> c(static_cast<std::size_t>(m * n));
  const std::int64_t lda = ta ? m : k, ldb = tb ? k : n;
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const Result own = measure(flops, [&] {
    gemm(m, n, k, {a.data(), lda, ta}, {b.data(), ldb, tb}, c.data(), n, accumulate);
  });
  Result blas;
  if (g_blas != nullptr) {
    blas = measure(flops, [&] {
      g_blas(101, ta ? 112 : 111, tb ? 112 : 111, static_cast<int>(m), static_cast<int>(n),
             static_cast<int>(k), 1.0f, a.data(), static_cast<int>(lda), b.data(),
             static_cast<int>(ldb), accumulate ? 1.0f : 0.0f, c.data(), static_cast<int>(n));
    });
  }
  report(group,
         std::string(form) + (accumulate ? "+" : " ") + " m " + std::to_string(m) + " n " +
             std::to_string(n) + " k " + std::to_string(k),
         own, blas);
}

// `experts` groups of T rows; weights (in, out) per expert.
void bench_experts(std::int64_t experts, std::int64_t rows, std::int64_t in, std::int64_t out) {
  const std::vector<float> x = random_values(experts * rows * in),
                           dy = random_values(experts * rows * out);
  std::vector<float> w = random_values(experts * in * out),
                     result(static_cast<std::size_t>(experts * rows * std::max(in, out)));
  const double flops = 2.0 * static_cast<double>(experts * rows) * static_cast<double>(in * out);
  for (const char* form : {"NN", "NT", "TN"}) {
    std::vector<GemmJob> jobs;
    for (std::int64_t e = 0; e < experts; ++e) {
      const float* xe = x.data() + e * rows * in;
      const float* dye = dy.data() + e * rows * out;
      float* we = w.data() + e * in * out;
      if (form[0] == 'T')
        jobs.push_back({in, out, rows, {xe, in, true}, {dye, out, false}, we, out});
      else if (form[1] == 'T')
        jobs.push_back(
            {rows, in, out, {dye, out, false}, {we, out, true}, result.data() + e * rows * in, in});
      else
        jobs.push_back({rows,
                        out,
                        in,
                        {xe, in, false},
                        {we, out, false},
                        result.data() + e * rows * out,
                        out});
    }
    const Result own = measure(flops, [&] {
      grouped_gemm(jobs.data(), static_cast<std::int64_t>(jobs.size()), form[0] == 'T');
    });
    report("expert",
           std::string(form) + " " + std::to_string(experts) + " x " + std::to_string(rows) +
               " rows, " + std::to_string(in) + " -> " + std::to_string(out),
           own, {});
  }
}

void bench_large() {
  const std::int64_t widths[][2] = {{512, 512}, {512, 2048}, {2048, 512}, {768, 3072}};
  for (const std::int64_t rows : {512, 2048}) {
    for (const auto& [in, out] : widths) {
      bench_product("large", rows, out, in, "NT", false);  // forward of a linear layer: w (out, in)
      bench_product("large", rows, in, out, "NN", false);  // gradient of the input
      bench_product("large", out, in, rows, "TN", true);   // gradient of the weight
    }
  }
}

void bench_head() {
  const std::int64_t shapes[][3] = {{256, 32128, 512}, {1024, 32128, 512}, {256, 256384, 768}};
  for (const auto& [rows, vocab, width] : shapes) {
    bench_product("head", rows, vocab, width, "NT", false);
    bench_product("head", rows, width, vocab, "NN", false);
    bench_product("head", vocab, width, rows, "TN", true);
  }
}

void bench_router() {
  for (const std::int64_t experts : {16, 32}) {
    bench_product("router", 2048, experts, 512, "NT", false);
    bench_product("router", 2048, 512, experts, "NN", true);
    bench_product("router", experts, 512, 2048, "TN", true);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* library = std::getenv("OPENMOE_BENCH_BLAS");
  if (library != nullptr) {
    void* handle = dlopen(library, RTLD_NOW);
    if (handle != nullptr) g_blas = reinterpret_cast<Sgemm>(dlsym(handle, "cblas_sgemm"));
    if (g_blas == nullptr) {
      std::fprintf(stderr, "OPENMOE_BENCH_BLAS=%s: %s\n", library, dlerror());
      return 2;
    }
  }
  const auto wanted = [&](const char* group) {
    if (argc == 1) return true;
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], group) == 0) return true;
    }
    return false;
  };
  std::printf("kernels %s, %d threads, f32 FMA peak %.1f GF/s\n", name_of(cpu_isa()),
              omp_get_max_threads(), peak_flops() * 1e-9);
  if (wanted("large")) bench_large();
  if (wanted("expert")) {
    for (const std::int64_t rows : {16, 64, 160, 256, 640}) bench_experts(16, rows, 512, 2048);
  }
  if (wanted("head")) bench_head();
  if (wanted("router")) bench_router();
  return 0;
}
