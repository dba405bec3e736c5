// Row kernels: every instruction set of this machine gives the bits of the generic one, at all
// lengths around a vector; and the vector exponential is accurate.
#include <cmath>
#include <cstring>
#include <vector>

#include "core/cpu/cpu_features.h"
#include "core/cpu/row_kernels.h"
#include "test/core/ops_test_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using namespace test;
using cpu::RowKernels;

// Everything that the kernels compute from the same values, with guard values around what they may
// write.
Floats run_all(const RowKernels& kernels, std::int64_t n) {
  Random random(static_cast<std::uint64_t>(n));
  std::vector<Floats> in;
  for (int i = 0; i < 5; ++i) in.push_back(random.normal(n, 2.0));
  Floats all;
  std::vector<Floats> out;
  const auto begin = [&] {
    out.clear();
    for (const std::size_t source : {0u, 1u, 2u}) {
      out.push_back(in[source]);
      out.back().push_back(12345.0f);
    }
  };
  const auto end = [&] {
    for (const Floats& values : out) {
      CHECK(values.back() == 12345.0f);
      all.insert(all.end(), values.begin(), values.end());
    }
  };
  const float *a = in[3].data(), *b = in[4].data(), *c = in[2].data(), *d = in[1].data();
  begin();
  kernels.add(out[0].data(), a, n);
  kernels.add_scaled(out[1].data(), 0.7f, a, n);
  kernels.scale(out[2].data(), 0.3f, a, n);
  end();
  begin();
  all.push_back(kernels.rms_norm(out[0].data(), a, b, 1e-6f, n));
  kernels.rms_norm_backward(out[1].data(), out[2].data(), a, b, c, 0.9f, n);
  end();
  begin();
  kernels.swiglu(out[0].data(), a, b, n);
  kernels.gated_swiglu(out[1].data(), a, b, c, n);
  kernels.exp_scaled(out[2].data(), a, 0.5f, 2.0f, n);
  end();
  begin();
  kernels.swiglu_backward(out[0].data(), out[1].data(), a, b, c, n);
  end();
  begin();
  kernels.gated_swiglu_backward(out[0].data(), out[1].data(), out[2].data(), a, b, c, d, n);
  end();
  begin();
  kernels.rotate(out[0].data(), out[1].data(), a, b, n);
  kernels.subtract_scaled_product(out[2].data(), 0.1f, a, b, n);
  end();
  begin();
  double g_square = 1.0, w_square = 2.0;
  kernels.adafactor_sums(out[0].data(), a, b, n, &g_square, &w_square);
  out[2].resize(static_cast<std::size_t>((n + cpu::kReductionBlock - 1) / cpu::kReductionBlock));
  const cpu::ExpSum sum = kernels.exp_sum(a, n);
  const cpu::ExpSum in_place = kernels.exp_sum_in_place(out[1].data(), out[2].data(), n);
  out[2].push_back(12345.0f);
  end();
  for (const double value : {g_square, w_square, sum.sum, in_place.sum,
                             kernels.sum_of_squares(a, n), kernels.product_square_sum(a, b, n)}) {
    all.push_back(static_cast<float>(value));
    all.push_back(static_cast<float>(value - static_cast<double>(all.back())));
  }
  for (const cpu::ExpSum& z : {sum, in_place}) {
    all.push_back(z.largest);
    all.push_back(static_cast<float>(z.argmax));
  }
  all.push_back(kernels.dot(a, b, n));
  return all;
}

TEST_CASE("cpu ops kernels: every instruction set gives the same bits") {
  for (const cpu::CpuIsa isa : cpu::available_cpu_isas()) {
    INFO(cpu::name_of(isa));
    for (const std::int64_t n : {1, 2, 15, 16, 17, 31, 32, 33, 100, 1023, 1024, 1025, 4099}) {
      INFO("n " << n);
      const Floats expected = run_all(cpu::row_kernels(cpu::CpuIsa::generic), n);
      const Floats found = run_all(cpu::row_kernels(isa), n);
      REQUIRE(found.size() == expected.size());
      CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("cpu ops kernels: the exponential is within two units in the last place") {
  const RowKernels& kernels = cpu::row_kernels(cpu::cpu_isa());
  Floats x, y;
  for (int i = -87200; i < 88000; ++i) x.push_back(static_cast<float>(i) * 1e-3f);
  for (int i = -20000; i <= 20000; ++i) x.push_back(static_cast<float>(i) * 1e-6f);
  y.resize(x.size());
  kernels.exp_scaled(y.data(), x.data(), 0.0f, 1.0f, static_cast<std::int64_t>(x.size()));
  double worst = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    const float rounded = static_cast<float>(expected);
    const double unit =
        static_cast<double>(std::nextafter(rounded, INFINITY)) - static_cast<double>(rounded);
    worst = std::max(worst, std::abs(static_cast<double>(y[i]) - expected) / unit);
  }
  CHECK(worst < 2.0);
  UNSCOPED_INFO("worst error " << worst << " units");

  const Floats special{-88.0f, -1e30f, -INFINITY, 0.0f, NAN};
  Floats out(special.size());
  kernels.exp_scaled(out.data(), special.data(), 0.0f, 1.0f, 5);
  CHECK(Floats(out.begin(), out.begin() + 4) == Floats{0.0f, 0.0f, 0.0f, 1.0f});
  CHECK(std::isnan(out[4]));
}

}  // namespace
}  // namespace openmoe
