// Matrix products of the CPU backend against a naive double-precision product, for every
// instruction set of this machine.
#include "core/cpu/gemm.h"

#include <omp.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/cpu/cpu_features.h"
#include "test/support/catch.h"

using namespace openmoe;
using namespace openmoe::cpu;

namespace {

// A random matrix op(X) of rows x cols with `pad` unused values (NaN: they must not be read as
// values) at the end of each stored row.
struct Matrix {
  Matrix(std::int64_t num_rows, std::int64_t num_cols, std::int64_t pad, bool is_transposed,
         Rng& rng)
      : rows(num_rows), cols(num_cols), transposed(is_transposed) {
    ld = (transposed ? rows : cols) + pad;
    values.assign(static_cast<std::size_t>((transposed ? cols : rows) * ld), std::nanf(""));
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols; ++j)
        at(i, j) = static_cast<float>(2.0 * rng.next_uniform() - 1.0);
    }
  }
  float& at(std::int64_t i, std::int64_t j) {
    return values[static_cast<std::size_t>(transposed ? j * ld + i : i * ld + j)];
  }
  float at(std::int64_t i, std::int64_t j) const { return const_cast<Matrix*>(this)->at(i, j); }
  GemmOperand operand() const { return {values.data(), ld, transposed}; }

  std::int64_t rows, cols, ld;
  bool transposed;
  std::vector<float> values;
};

struct Case {
  std::int64_t m, n, k;
  bool a_transposed, b_transposed, accumulate;
  std::int64_t pad;
};

// The worst |error| / (sum |a b| + |c|); 1e30 for NaN, or if anything beside C was written.
double worst_error(const Case& x, std::uint64_t seed) {
  Rng rng(seed, stream_id("gemm_test"));
  Matrix a(x.m, x.k, x.pad, x.a_transposed, rng), b(x.k, x.n, x.pad, x.b_transposed, rng);
  Matrix c(x.m, x.n, x.pad, false, rng);
  const Matrix old = c;
  gemm(x.m, x.n, x.k, a.operand(), b.operand(), c.values.data(), c.ld, x.accumulate);
  double worst = 0.0;
  std::vector<double> sum(static_cast<std::size_t>(x.n)), size(static_cast<std::size_t>(x.n));
  for (std::int64_t i = 0; i < x.m; ++i) {
    for (std::int64_t j = 0; j < x.n; ++j) {
      const double start = x.accumulate ? static_cast<double>(old.at(i, j)) : 0.0;
      sum[static_cast<std::size_t>(j)] = start;
      size[static_cast<std::size_t>(j)] = std::fabs(start);
    }
    for (std::int64_t p = 0; p < x.k; ++p) {
      const auto left = static_cast<double>(a.at(i, p));
      for (std::int64_t j = 0; j < x.n; ++j) {
        const double product = left * static_cast<double>(b.at(p, j));
        sum[static_cast<std::size_t>(j)] += product;
        size[static_cast<std::size_t>(j)] += std::fabs(product);
      }
    }
    for (std::int64_t j = 0; j < x.n; ++j) {
      const auto at = static_cast<std::size_t>(j);
      const double error = std::fabs(static_cast<double>(c.at(i, j)) - sum[at]);
      if (!(error <= 1e30)) return 1e30;
      if (error > 0.0) worst = std::max(worst, error / size[at]);
    }
    for (std::int64_t j = x.n; j < c.ld; ++j) {
      if (!std::isnan(c.values[static_cast<std::size_t>(i * c.ld + j)])) return 1e30;
    }
  }
  return worst;
}

void check(const Case& x, std::uint64_t seed) {
  INFO("m " << x.m << " n " << x.n << " k " << x.k << (x.a_transposed ? " T" : " N")
            << (x.b_transposed ? "T" : "N") << (x.accumulate ? " accumulate" : "") << " pad "
            << x.pad << " isa " << name_of(cpu_isa()));
  CHECK(worst_error(x, seed) < 4e-7);
}

class ScopedThreads {
 public:
  explicit ScopedThreads(int threads) : previous_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ScopedThreads() { omp_set_num_threads(previous_); }

 private:
  int previous_;
};

}  // namespace

TEST_CASE("gemm: random shapes, forms and leading dimensions on every instruction set", "[gemm]") {
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    Rng rng(7, stream_id("gemm_shapes"));
    for (std::uint64_t n = 0; n < 240; ++n) {
      const std::uint64_t bound = n < 160 ? 70 : 250;
      Case x{};
      x.m = static_cast<std::int64_t>(rng.next_below(bound));
      x.n = static_cast<std::int64_t>(rng.next_below(bound));
      x.k = static_cast<std::int64_t>(rng.next_below(bound));
      x.a_transposed = rng.next_below(2) == 1;
      x.b_transposed = rng.next_below(2) == 1;
      x.accumulate = rng.next_below(2) == 1;
      x.pad = static_cast<std::int64_t>(rng.next_below(3)) * 5;
      check(x, n);
    }
  }
}

TEST_CASE("gemm: blocks in every direction, all four forms", "[gemm]") {
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    for (int form = 0; form < 4; ++form) {
      const bool ta = (form & 1) != 0, tb = (form & 2) != 0;
      check({1, 1, 3000, ta, tb, true, 0}, 1);     // k over several blocks
      check({40, 16, 1001, ta, tb, false, 0}, 2);  // the router
      check({700, 33, 67, ta, tb, true, 1}, 3);    // several blocks of rows
      check({15, 4500, 33, ta, tb, false, 0}, 4);  // several blocks of columns
    }
  }
}

TEST_CASE("gemm: empty products", "[gemm]") {
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    float c[6] = {1, 2, 3, 4, 5, 6};
    const GemmOperand none{nullptr, 3};
    gemm(0, 3, 2, none, none, c, 3, false);
    gemm(2, 0, 2, none, none, c, 3, false);
    gemm(2, 2, 0, none, none, c, 3, true);
    CHECK(c[0] == 1.0f);
    gemm(2, 2, 0, none, none, c, 3, false);
    CHECK(c[0] == 0.0f);
    CHECK(c[1] == 0.0f);
    CHECK(c[2] == 3.0f);
    CHECK(c[4] == 0.0f);
    CHECK(c[5] == 6.0f);
  }
}

TEST_CASE("gemm: the bits do not depend on the number of threads", "[gemm]") {
  const Case cases[] = {{301, 517, 800, false, true, true, 3},
                        {16, 2048, 512, false, false, false, 0},
                        {33, 70, 900, true, false, true, 0},
                        {1000, 16, 512, false, true, false, 0}};
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    for (const Case& x : cases) {
      std::vector<float> first;
      for (const int threads : {1, 2, 3, 5}) {
        const ScopedThreads team(threads);
        Rng rng(3, 3);
        Matrix a(x.m, x.k, x.pad, x.a_transposed, rng), b(x.k, x.n, x.pad, x.b_transposed, rng);
        Matrix c(x.m, x.n, 0, false, rng);
        gemm(x.m, x.n, x.k, a.operand(), b.operand(), c.values.data(), c.ld, x.accumulate);
        if (first.empty()) first = c.values;
        INFO(name_of(isa) << " threads " << threads << " m " << x.m);
        CHECK(std::memcmp(first.data(), c.values.data(), first.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("grouped_gemm: each group as its own product, bit for bit, with empty and uneven groups",
          "[gemm]") {
  const std::int64_t rows[] = {0, 3, 250, 1, 0, 17, 64};
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    for (const int threads : {1, 2, 3}) {
      const ScopedThreads team(threads);
      for (int form = 0; form < 6; ++form) {
        const bool accumulate = form >= 3;
        Rng rng(11, static_cast<std::uint64_t>(form));
        std::vector<Matrix> a, b, c, expected;
        std::vector<GemmJob> jobs;
        for (const std::int64_t t :
             rows) {  // forward, gradient of the input, gradient of the weight
          const std::int64_t m = form % 3 == 2 ? 90 : t, k = form % 3 == 2 ? t : 90;
          a.emplace_back(m, k, 0, form % 3 == 2, rng);
          b.emplace_back(k, 130, 0, form % 3 == 1, rng);
          c.emplace_back(m, 130, 0, false, rng);
        }
        expected = c;
        for (std::size_t g = 0; g < c.size(); ++g) {
          jobs.push_back({c[g].rows, 130, a[g].cols, a[g].operand(), b[g].operand(),
                          c[g].values.data(), c[g].ld});
          gemm(c[g].rows, 130, a[g].cols, a[g].operand(), b[g].operand(), expected[g].values.data(),
               c[g].ld, accumulate);
        }
        grouped_gemm(jobs.data(), static_cast<std::int64_t>(jobs.size()), accumulate);
        for (std::size_t g = 0; g < c.size(); ++g) {
          INFO(name_of(isa) << " form " << form << " group " << g);
          CHECK((c[g].values.empty() || std::memcmp(c[g].values.data(), expected[g].values.data(),
                                                    c[g].values.size() * sizeof(float)) == 0));
        }
      }
    }
  }
}

TEST_CASE("cpu_features: names, the override and its errors", "[gemm]") {
  CHECK(choose_cpu_isa(nullptr, CpuIsa::avx512) == CpuIsa::avx512);
  CHECK(choose_cpu_isa("", CpuIsa::avx2) == CpuIsa::avx2);
  CHECK(choose_cpu_isa("generic", CpuIsa::avx512) == CpuIsa::generic);
  CHECK(choose_cpu_isa("avx512_bf16", CpuIsa::avx512_bf16) == CpuIsa::avx512_bf16);
  CHECK_THROWS_AS(choose_cpu_isa("sse9", CpuIsa::avx2), UserError);
  CHECK_THROWS_AS(choose_cpu_isa("avx512", CpuIsa::avx2), UserError);
  const CpuIsa before = cpu_isa();
  {
    const ScopedCpuIsa scope(CpuIsa::generic);
    CHECK(cpu_isa() == CpuIsa::generic);
  }
  CHECK(cpu_isa() == before);
}
