// Attention kernels against the formulas in double precision, with the T x T matrix that they
// avoid; every instruction set.
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/base/rng.h"
#include "core/cpu/attention.h"
#include "core/cpu/cpu_features.h"
#include "core/cpu/vector_math.h"
#include "test/support/catch.h"

using namespace openmoe;
using namespace openmoe::cpu;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

Floats random_floats(std::int64_t size, std::uint64_t stream, double factor = 1.0) {
  Rng rng(5, stream);
  Floats values(static_cast<std::size_t>(size));
  for (float& value : values) value = static_cast<float>(factor * (2.0 * rng.next_uniform() - 1.0));
  return values;
}

enum class Segments { one, packed, padded, interleaved, none };

std::vector<std::int32_t> make_segments(Segments kind, std::int64_t B, std::int64_t T) {
  std::vector<std::int32_t> ids;
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t t = 0; t < T; ++t) {
      std::int64_t id = 0;
      if (kind == Segments::one) id = 7;
      if (kind == Segments::packed) id = 1 + (t + 11 * b) / 37;  // short documents in a row
      if (kind == Segments::padded)
        id = t < T * 2 / 3 ? 1 + t * 3 / T : -(t % 2);          // padding at the end, 0 and -1
      if (kind == Segments::interleaved) id = (t * 5 + b) % 4;  // not contiguous, with holes
      ids.push_back(static_cast<std::int32_t>(id));
    }
  }
  return ids;
}

struct Problem {
  std::int64_t B, T, H, Dh;
  float scale;
  std::vector<std::int32_t> segments;
  Floats q, k, v, d_o;

  Problem(std::int64_t rows, std::int64_t positions, std::int64_t heads, std::int64_t head_width,
          Segments kind)
      : B(rows),
        T(positions),
        H(heads),
        Dh(head_width),
        scale(1.0f / std::sqrt(static_cast<float>(head_width))) {
    segments = make_segments(kind, B, T);
    q = random_floats(B * T * H * Dh, 1, 3.0);
    k = random_floats(B * T * H * Dh, 2, 2.0);
    v = random_floats(B * T * H * Dh, 3);
    d_o = random_floats(B * T * H * Dh, 4);
  }
  std::size_t at(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d) const {
    return static_cast<std::size_t>(((b * T + t) * H + h) * Dh + d);
  }
  bool attends(std::int64_t b, std::int64_t t, std::int64_t s) const {
    const std::int32_t id = segments[static_cast<std::size_t>(b * T + t)];
    return s <= t && id > 0 && segments[static_cast<std::size_t>(b * T + s)] == id;
  }
};

struct Answer {
  Floats o, log_z, dq, dk, dv;
};

Answer run(const Problem& x) {
  const std::size_t size = x.q.size();
  const float junk = std::nanf("");
  Answer y{Floats(size, junk), Floats(static_cast<std::size_t>(x.B * x.H * x.T), junk),
           Floats(size, junk), Floats(size, junk), Floats(size, junk)};
  attention_forward(y.o.data(), y.log_z.data(), x.q.data(), x.k.data(), x.v.data(),
                    x.segments.data(), x.B, x.T, x.H, x.Dh, x.scale);
  attention_backward(y.dq.data(), y.dk.data(), y.dv.data(), x.d_o.data(), x.q.data(), x.k.data(),
                     x.v.data(), y.o.data(), x.segments.data(), y.log_z.data(), x.B, x.T, x.H, x.Dh,
                     x.scale);
  return y;
}

struct Reference {
  Doubles o, log_z, dq, dk, dv;
};

Reference reference(const Problem& x) {
  Reference y{Doubles(x.q.size()), Doubles(static_cast<std::size_t>(x.B * x.H * x.T)),
              Doubles(x.q.size()), Doubles(x.q.size()), Doubles(x.q.size())};
  Doubles p(static_cast<std::size_t>(x.T));
  const auto dot = [&](const Floats& a, std::size_t i, const Floats& b, std::size_t j) {
    double sum = 0.0;
    for (std::int64_t d = 0; d < x.Dh; ++d)
      sum += static_cast<double>(a[i + static_cast<std::size_t>(d)]) *
             static_cast<double>(b[j + static_cast<std::size_t>(d)]);
    return sum;
  };
  for (std::int64_t b = 0; b < x.B; ++b) {
    for (std::int64_t h = 0; h < x.H; ++h) {
      for (std::int64_t t = 0; t < x.T; ++t) {
        double total = 0.0, mean_dp = 0.0;
        for (std::int64_t s = 0; s <= t; ++s) {
          const double score =
              static_cast<double>(x.scale) * dot(x.q, x.at(b, t, h, 0), x.k, x.at(b, s, h, 0));
          p[static_cast<std::size_t>(s)] = x.attends(b, t, s) ? std::exp(score) : 0.0;
          total += p[static_cast<std::size_t>(s)];
        }
        if (total == 0.0) continue;
        y.log_z[static_cast<std::size_t>((b * x.H + h) * x.T + t)] = std::log(total);
        for (std::int64_t s = 0; s <= t; ++s) {
          p[static_cast<std::size_t>(s)] /= total;
          mean_dp +=
              p[static_cast<std::size_t>(s)] * dot(x.d_o, x.at(b, t, h, 0), x.v, x.at(b, s, h, 0));
        }
        for (std::int64_t s = 0; s <= t; ++s) {
          const double weight = p[static_cast<std::size_t>(s)];
          const double ds = static_cast<double>(x.scale) * weight *
                            (dot(x.d_o, x.at(b, t, h, 0), x.v, x.at(b, s, h, 0)) - mean_dp);
          for (std::int64_t d = 0; d < x.Dh; ++d) {
            const std::size_t query = x.at(b, t, h, d), key = x.at(b, s, h, d);
            y.o[query] += weight * static_cast<double>(x.v[key]);
            y.dv[key] += weight * static_cast<double>(x.d_o[query]);
            y.dq[query] += ds * static_cast<double>(x.k[key]);
            y.dk[key] += ds * static_cast<double>(x.q[query]);
          }
        }
      }
    }
  }
  return y;
}

double worst(const Floats& found, const Doubles& expected) {
  double error = 0.0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(found[i]) - expected[i]);
    if (!(difference <= 1e30)) return 1e30;
    error = std::max(error, difference / (1.0 + std::fabs(expected[i])));
  }
  return error;
}

}  // namespace

TEST_CASE("attention kernels: forward and backward against the formulas", "[attention]") {
  const Problem problems[] = {
      {2, 5, 3, 4, Segments::one},        {1, 1, 1, 1, Segments::one},
      {1, 64, 2, 64, Segments::one},      {2, 129, 2, 33, Segments::packed},
      {2, 200, 1, 16, Segments::padded},  {2, 150, 2, 20, Segments::interleaved},
      {1, 131, 2, 7, Segments::none},     {1, 257, 1, 65, Segments::packed},
      {1, 193, 1, 128, Segments::padded}, {2, 64, 2, 8, Segments::interleaved}};
  for (const Problem& x : problems) {
    const Reference expected = reference(x);
    for (const CpuIsa isa : available_cpu_isas()) {
      const ScopedCpuIsa scope(isa);
      const Answer found = run(x);
      INFO("B " << x.B << " T " << x.T << " H " << x.H << " Dh " << x.Dh << " isa "
                << name_of(isa));
      CHECK(worst(found.o, expected.o) < 2e-6);
      CHECK(worst(found.log_z, expected.log_z) < 2e-6);
      CHECK(worst(found.dq, expected.dq) < 4e-6);
      CHECK(worst(found.dk, expected.dk) < 4e-6);
      CHECK(worst(found.dv, expected.dv) < 4e-6);
      for (std::int64_t b = 0; b < x.B; ++b) {  // padding: exactly 0
        for (std::int64_t t = 0; t < x.T; ++t) {
          if (x.segments[static_cast<std::size_t>(b * x.T + t)] > 0) continue;
          bool zero = true;
          for (std::int64_t h = 0; h < x.H; ++h) {
            zero = zero && found.log_z[static_cast<std::size_t>((b * x.H + h) * x.T + t)] == 0.0f;
            for (std::int64_t d = 0; d < x.Dh; ++d) {
              const std::size_t i = x.at(b, t, h, d);
              zero = zero && found.o[i] == 0.0f && found.dq[i] == 0.0f && found.dk[i] == 0.0f &&
                     found.dv[i] == 0.0f;
            }
          }
          CHECK(zero);
        }
      }
    }
  }
}

TEST_CASE("attention kernels: no rows and no positions", "[attention]") {
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    CHECK(run({0, 9, 2, 8, Segments::one}).o.empty());
    CHECK(run({2, 0, 2, 8, Segments::one}).o.empty());
  }
}

TEST_CASE("attention kernels: large scores neither overflow nor lose the weights", "[attention]") {
  Problem x(1, 90, 1, 16, Segments::one);
  for (float& value : x.q) value *= 60.0f;  // scores of some hundreds
  const Reference expected = reference(x);
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    const Answer found = run(x);
    CHECK(worst(found.o, expected.o) < 2e-4);  // a sum of terms of some hundreds is known to 3e-5
    CHECK(worst(found.log_z, expected.log_z) < 2e-5);
  }
}

TEST_CASE("attention kernels: a non-finite input is not hidden", "[attention]") {
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    Problem x(1, 70, 1, 8, Segments::one);
    x.k[x.at(0, 3, 0, 2)] = std::numeric_limits<float>::quiet_NaN();
    const Answer found = run(x);
    CHECK(std::isfinite(found.o[x.at(0, 2, 0, 0)]));
    CHECK(std::isnan(found.o[x.at(0, 3, 0, 0)]));
    CHECK(std::isnan(found.o[x.at(0, 69, 0, 7)]));
  }
}

TEST_CASE("attention kernels: the bits do not depend on the number of threads", "[attention]") {
  const Problem x(2, 140, 3, 24, Segments::packed);
  const int previous = omp_get_max_threads();
  for (const CpuIsa isa : available_cpu_isas()) {
    const ScopedCpuIsa scope(isa);
    omp_set_num_threads(1);
    const Answer first = run(x);
    for (const int threads : {2, 3}) {
      omp_set_num_threads(threads);
      const Answer other = run(x);
      const auto same = [](const Floats& a, const Floats& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
      };
      CHECK(same(first.o, other.o));
      CHECK(same(first.log_z, other.log_z));
      CHECK(same(first.dq, other.dq));
      CHECK(same(first.dk, other.dk));
      CHECK(same(first.dv, other.dv));
    }
  }
  omp_set_num_threads(previous);
}

TEST_CASE("vector_math: exponentials over their whole range", "[attention]") {
  double error_exp = 0.0, error_exp2 = 0.0;
  for (double x = -86.9; x < 88.7; x += 0.000931) {
    const auto arg = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(arg));
    error_exp = std::max(error_exp, std::fabs(static_cast<double>(fast_exp(arg)) - exact) / exact);
  }
  for (double x = -126.0; x < 127.0; x += 0.000931) {
    const auto arg = static_cast<float>(x);
    const double exact = std::exp2(static_cast<double>(arg));
    error_exp2 = std::max(
        error_exp2,
        std::fabs(static_cast<double>(exp2_approx<float, std::uint32_t>(arg)) - exact) / exact);
  }
  CHECK(error_exp < 1.8e-7);
  CHECK(error_exp2 < 1.2e-7);
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(fast_exp(0.0f) == 1.0f);
  CHECK(fast_exp(-infinity) == 0.0f);
  CHECK(fast_exp(-1e30f) == 0.0f);
  CHECK(fast_exp(infinity) == infinity);
  CHECK(fast_exp(89.0f) == infinity);
  CHECK(std::isnan(fast_exp(std::nanf(""))));
  CHECK(exp2_approx<float, std::uint32_t>(-infinity) == 0.0f);
  CHECK(std::isnan(exp2_approx<float, std::uint32_t>(std::nanf(""))));
}
