// Micro-benchmark of the matrix products and of attention: each sample stands between two runs of a
// register-only FMA loop and is reported as a share of that paired peak, because the clock and the
// cores of a shared machine change by the second.
//   openmoe_bench_gemm [group ...]   groups: large bf16 expert head router attention (default:
//   all). bf16 products too are a
//                                    share of the f32 peak: their limit is 2.
//   openmoe_bench_gemm NT:2048:512:768 xTN:512:512:2048   single products by form, m, n, k; x: bf16
//   OMP_NUM_THREADS, OPENMOE_CPU_ISA choose threads and kernels;
//   OPENMOE_BENCH_BLAS=<libopenblas.so> adds that library.
#include <dlfcn.h>
#include <omp.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "core/cpu/attention.h"
#include "core/cpu/cpu_features.h"
#include "core/cpu/gemm.h"

using namespace openmoe;
using namespace openmoe::cpu;

namespace {

// Memory as the trainer's arena gives it: aligned, and on huge pages where the system has them.
template <class T>
struct HugePages {
  using value_type = T;
  HugePages() = default;
  template <class U>
  HugePages(const HugePages<U>&) {}
  T* allocate(std::size_t count) {
    constexpr std::size_t kPage = std::size_t{2} << 20;
    const std::size_t bytes = (count * sizeof(T) + kPage - 1) / kPage * kPage;
    void* data = std::aligned_alloc(kPage, bytes);
    if (data == nullptr) throw std::bad_alloc();
    madvise(data, bytes, MADV_HUGEPAGE);
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t) { std::free(data); }
  bool operator==(const HugePages&) const { return true; }
};
using Floats = std::vector<float, HugePages<float>>;
template <class T>
using Array = std::vector<T, HugePages<T>>;
using Halves = std::vector<BFloat16, HugePages<BFloat16>>;

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

Floats random_values(std::int64_t size) {
  Floats values(static_cast<std::size_t>(size));
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
  const Floats a = random_values(m * k), b = random_values(k * n);
  Floats c(static_cast<std::size_t>(m * n));
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

Halves to_bf16(const Floats& values) {
  Halves rounded;
  rounded.reserve(values.size());
  for (const float value : values) rounded.emplace_back(value);
  return rounded;
}

void bench_product_bf16(std::int64_t m, std::int64_t n, std::int64_t k, const char* form) {
  const bool ta = form[0] == 'T', tb = form[1] == 'T';
  const Halves a = to_bf16(random_values(m * k)), b = to_bf16(random_values(k * n));
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const GemmOperandBf16 left{a.data(), ta ? m : k, ta}, right{b.data(), tb ? k : n, tb};
  Result own;
  if (ta) {  // gradients of weights are f32
    Floats c(static_cast<std::size_t>(m * n));
    own = measure(flops, [&] { gemm(m, n, k, left, right, c.data(), n, true); });
  } else {
    Halves c(static_cast<std::size_t>(m * n));
    own = measure(flops, [&] { gemm(m, n, k, left, right, c.data(), n, false); });
  }
  report("bf16",
         std::string(form) + "  m " + std::to_string(m) + " n " + std::to_string(n) + " k " +
             std::to_string(k),
         own, {});
}

// `experts` groups of `rows` rows; weights (in, out) per expert.
template <class Element>
void bench_experts(const char* name, const Array<Element>& x, const Array<Element>& dy,
                   const Array<Element>& w, std::int64_t experts, std::int64_t rows,
                   std::int64_t in, std::int64_t out) {
  Floats dw(w.size());
  Array<Element> y(static_cast<std::size_t>(experts * rows * std::max(in, out)));
  const double flops = 2.0 * static_cast<double>(experts * rows) * static_cast<double>(in * out);
  for (const char* form : {"NN", "NT", "TN"}) {
    std::vector<GemmJobT<Element, Element>> jobs;
    std::vector<GemmJobT<Element, float>> weight_jobs;
    for (std::int64_t e = 0; e < experts; ++e) {
      const Element* xe = x.data() + e * rows * in;
      const Element* dye = dy.data() + e * rows * out;
      const Element* we = w.data() + e * in * out;
      if (form[0] == 'T')
        weight_jobs.push_back(
            {in, out, rows, {xe, in, true}, {dye, out, false}, dw.data() + e * in * out, out});
      else if (form[1] == 'T')
        jobs.push_back(
            {rows, in, out, {dye, out, false}, {we, out, true}, y.data() + e * rows * in, in});
      else
        jobs.push_back(
            {rows, out, in, {xe, in, false}, {we, out, false}, y.data() + e * rows * out, out});
    }
    const Result own = measure(flops, [&] {
      if (form[0] == 'T')
        grouped_gemm(weight_jobs.data(), experts, true);
      else
        grouped_gemm(jobs.data(), experts, false);
    });
    report(name,
           std::string(form) + " " + std::to_string(experts) + " x " + std::to_string(rows) +
               " rows, " + std::to_string(in) + " -> " + std::to_string(out),
           own, {});
  }
}

void bench_all_experts() {
  const std::int64_t experts = 16, in = 512, out = 2048;
  const Floats w = random_values(experts * in * out);
  const Halves half_w = to_bf16(w);
  for (const std::int64_t rows : {16, 64, 160, 256, 640}) {
    const Floats x = random_values(experts * rows * in), dy = random_values(experts * rows * out);
    bench_experts("expert", x, dy, w, experts, rows, in, out);
    bench_experts("exp-bf16", to_bf16(x), to_bf16(dy), half_w, experts, rows, in, out);
  }
}

// The causal products of attention as plain grouped products, by blocks of 256 queries, with all
// scores in memory.
struct AttentionProducts {
  static constexpr std::int64_t kBlock = 256;
  AttentionProducts(std::int64_t T, std::int64_t heads, std::int64_t Dh)
      : q(random_values(T * heads * Dh)), scores(random_values(heads * T * T)), out(q) {
    const std::int64_t ld = heads * Dh;
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < T; t += kBlock) {
        const std::int64_t keys = t + kBlock;
        float* p = scores.data() + (h * T + t) * T;
        const float* x = q.data() + h * Dh;
        float* y = out.data() + h * Dh;
        query_key.push_back({kBlock, keys, Dh, {x + t * ld, ld, false}, {x, ld, true}, p, T});
        score_value.push_back({kBlock, Dh, keys, {p, T, false}, {x, ld, false}, y + t * ld, ld});
        score_query.push_back({keys, Dh, kBlock, {p, T, true}, {x + t * ld, ld, false}, y, ld});
      }
    }
  }
  static void run(const std::vector<GemmJob>& jobs) {
    for (const GemmJob& job : jobs) gemm(job.m, job.n, job.k, job.a, job.b, job.c, job.ldc, false);
  }
  void forward() const {
    run(query_key);
    run(score_value);
  }
  void backward() const {
    for (int i = 0; i < 2; ++i) {  // scores and their gradient; gradients of values and of keys
      run(query_key);
      run(score_query);
    }
    run(score_value);
  }
  Floats q, scores, out;
  std::vector<GemmJob> query_key, score_value, score_query;
};

void bench_attention() {
  const std::int64_t B = 1, H = 8, Dh = 64;
  for (const std::int64_t T : {512, 2048}) {
    const std::int64_t size = B * T * H * Dh;
    const Floats q = random_values(size), k = random_values(size), v = random_values(size), d_o = v;
    Floats o(q), dq(q), dk(q), dv(q), log_z(static_cast<std::size_t>(B * H * T));
    const std::vector<std::int32_t> segments(static_cast<std::size_t>(B * T), 1);
    const double product =
        2.0 * static_cast<double>(B * H * Dh) * static_cast<double>(T * (T + 1) / 2);
    const float scale = 0.125f;
    const auto forward = [&] {
      attention_forward(o.data(), log_z.data(), q.data(), k.data(), v.data(), segments.data(), B, T,
                        H, Dh, scale);
    };
    const auto backward = [&] {
      attention_backward(dq.data(), dk.data(), dv.data(), d_o.data(), q.data(), k.data(), v.data(),
                         o.data(), segments.data(), log_z.data(), B, T, H, Dh, scale);
    };
    const AttentionProducts products(T, B * H, Dh);
    const std::string what = "T " + std::to_string(T) + " H 8 Dh 64";
    report("attention", what + " forward", measure(2.0 * product, forward), {});
    report("attention", what + " forward, products",
           measure(2.0 * product, [&] { products.forward(); }), {});
    report("attention", what + " backward", measure(5.0 * product, backward), {});
    report("attention", what + " backward, products",
           measure(5.0 * product, [&] { products.backward(); }), {});
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

void bench_bf16() {
  const std::int64_t widths[][2] = {{512, 512}, {512, 2048}, {768, 3072}};
  for (const auto& [in, out] : widths) {
    bench_product_bf16(2048, out, in, "NT");
    bench_product_bf16(2048, in, out, "NN");
    bench_product_bf16(out, in, 2048, "TN");
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

// "NT:2048:512:512": form, m, n, k; an x in front: bf16.
bool bench_named_product(const char* text) {
  char form[8];
  long m = 0, n = 0, k = 0;
  const bool half = text[0] == 'x';
  if (std::sscanf(text + (half ? 1 : 0), "%2[NT]:%ld:%ld:%ld", form, &m, &n, &k) != 4) return false;
  if (half)
    bench_product_bf16(m, n, k, form);
  else
    bench_product("product", m, n, k, form, form[0] == 'T');
  return true;
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
  for (int i = 1; i < argc; ++i) bench_named_product(argv[i]);
  if (wanted("large")) bench_large();
  if (wanted("bf16")) bench_bf16();
  if (wanted("expert")) bench_all_experts();
  if (wanted("attention")) bench_attention();
  if (wanted("head")) bench_head();
  if (wanted("router")) bench_router();
  return 0;
}
