// One test body for every backend: it makes its tensors through an OpRun and calls ops; then every
// tensor it made is compared, inputs too, which must not have changed. On the emulated device the
// body runs under several schedules of blocks and threads, which must give the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/cpu/cpu_ops.h"
#include "core/ops.h"
#include "cuda/device_ops.h"
#include "test/cuda/schedule.h"
#include "test/cuda_emulation/emulation.h"
#include "test/support/catch.h"

namespace openmoe::test {

// How often `work` waits for an emulated device.
inline std::int64_t waits_of(const std::function<void()>& work) {
  const std::int64_t before = cuda_emulation::counters().host_waits;
  work();
  return cuda_emulation::counters().host_waits - before;
}

class OpRun {
 public:
  explicit OpRun(Ops& ops) : ops_(ops) {}
  ~OpRun() {
    for (const Held& held : held_) ops_.free_bytes(held.block, held.block_bytes);
  }
  OpRun(const OpRun&) = delete;
  OpRun& operator=(const OpRun&) = delete;

  Ops& ops() { return ops_; }

  // Normal values, the same for every backend, a function of the name; in bf16 the same ones
  // rounded. `misaligned`: the tensor begins one element past an aligned address, so that no vector
  // access fits.
  Tensor normal(const std::string& name, const Shape& shape, double scale = 1.0,
                bool misaligned = false, DType dtype = DType::f32) {
    return floats(name, shape, normal_values(name, shape, scale), misaligned, dtype);
  }
  static std::vector<float> normal_values(const std::string& name, const Shape& shape,
                                          double scale = 1.0) {
    const Rng rng(1, stream_id(name));
    std::vector<float> values(static_cast<std::size_t>(shape.num_elements()));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(scale * rng.normal_at(i));
    return values;
  }
  // NaN everywhere: what an op leaves alone stays NaN, what it reads spoils its results.
  Tensor poisoned(const std::string& name, const Shape& shape, bool misaligned = false,
                  DType dtype = DType::f32) {
    return floats(name, shape,
                  std::vector<float>(static_cast<std::size_t>(shape.num_elements()),
                                     std::numeric_limits<float>::quiet_NaN()),
                  misaligned, dtype);
  }
  Tensor floats(const std::string& name, const Shape& shape, const std::vector<float>& values,
                bool misaligned = false, DType dtype = DType::f32) {
    OPENMOE_CHECK(static_cast<std::int64_t>(values.size()) == shape.num_elements(), name);
    if (dtype == DType::f32) return make(name, shape, dtype, values.data(), misaligned);
    const std::vector<BFloat16> rounded(values.begin(), values.end());
    return make(name, shape, dtype, rounded.data(), misaligned);
  }
  // The same values rounded to bf16: stored so on the device, as f32 on the CPU backend, whose
  // results are then those of exact storage.
  Tensor bf16(const std::string& name, const Shape& shape, const std::vector<float>& values,
              bool misaligned = false) {
    if (ops_.device() != Device::host) return floats(name, shape, values, misaligned, DType::bf16);
    std::vector<float> widened;
    for (const float value : values) widened.push_back(static_cast<float>(BFloat16(value)));
    return floats(name, shape, widened, misaligned);
  }
  Tensor ints(const std::string& name, const Shape& shape,
              const std::vector<std::int32_t>& values) {
    OPENMOE_CHECK(static_cast<std::int64_t>(values.size()) == shape.num_elements(), name);
    return make(name, shape, DType::i32, values.data(), false);
  }
  // An integer result, -7 before it is written.
  Tensor unwritten_ints(const std::string& name, const Shape& shape) {
    return ints(name, shape,
                std::vector<std::int32_t>(static_cast<std::size_t>(shape.num_elements()), -7));
  }
  void number(const std::string& name, double value) { numbers_.push_back({name, value}); }
  // Every backend must compute the same bits of `x`: there is one right rounding, or none at all.
  void exactly(const Tensor& x) {
    for (Held& held : held_) held.is_exact |= held.tensor.data == x.data;
  }

  // Of a tensor of f32 or bf16.
  std::vector<float> read_floats(const Tensor& x) {
    if (x.dtype == DType::bf16) {
      const std::vector<BFloat16> stored = read<BFloat16>(x);
      std::vector<float> values;
      for (const BFloat16 value : stored) values.push_back(static_cast<float>(value));
      return values;
    }
    return read<float>(x);
  }
  std::vector<std::int32_t> read_ints(const Tensor& x) { return read<std::int32_t>(x); }

  // What the body computed: every tensor it made, and every number.
  struct Result {
    std::string name;
    DType dtype = DType::f32;
    bool is_exact = false;
    std::vector<float> floats;
    std::vector<std::int32_t> ints;
    std::vector<double> numbers;
  };
  std::vector<Result> results() {
    std::vector<Result> all;
    for (const Held& held : held_) {
      Result result{held.name, held.tensor.dtype, held.is_exact, {}, {}, {}};
      if (held.tensor.dtype == DType::i32)
        result.ints = read_ints(held.tensor);
      else
        result.floats = read_floats(held.tensor);
      all.push_back(std::move(result));
    }
    for (const auto& [name, value] : numbers_)
      all.push_back({name, DType::f32, false, {}, {}, {value}});
    return all;
  }

 private:
  struct Held {
    std::string name;
    void* block;
    std::int64_t block_bytes;
    Tensor tensor;
    bool is_exact = false;
  };

  template <typename T>
  std::vector<T> read(const Tensor& x) {
    std::vector<T> values(static_cast<std::size_t>(x.num_elements()));
    if (!values.empty()) ops_.copy(host_view(values.data(), x.shape), x);
    return values;
  }

  Tensor make(const std::string& name, const Shape& shape, DType dtype, const void* values,
              bool misaligned) {
    const std::int64_t element = size_of(dtype), skip = misaligned ? element : 0;
    const std::int64_t bytes = shape.num_elements() * element + skip;
    void* const block = ops_.allocate_bytes(bytes);
    const Tensor tensor{static_cast<char*>(block) + skip, dtype, ops_.device(), shape};
    held_.push_back({name, block, bytes, tensor});
    if (tensor.num_elements() > 0)
      ops_.copy(tensor, Tensor{const_cast<void*>(values), dtype, Device::host, shape});
    return tensor;
  }

  Ops& ops_;
  std::vector<Held> held_;
  std::vector<std::pair<std::string, double>> numbers_;
};

// Largest difference over the largest magnitude of `expected`; NaN only equals NaN.
template <typename T>
double relative_difference(const std::vector<T>& found, const std::vector<T>& expected) {
  double largest = 0.0, difference = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double a = static_cast<double>(found[i]), b = static_cast<double>(expected[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::abs(b));
    difference = std::max(difference, std::abs(a - b));
  }
  return difference == 0.0 ? 0.0 : difference / std::max(largest, 1e-30);
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The distance to the next bf16 number above |x|.
inline double bf16_unit(double x) {
  int exponent = 0;
  std::frexp(x, &exponent);
  return std::ldexp(1.0, std::max(exponent, -125) - 8);
}

// Both sides rounded an f32 value, and these values differ by at most `tolerance` of the tensor's
// largest one. So the results differ by that and, where the middle of two bf16 numbers lies between
// the values, by one unit of the last place. That is rare, unless somebody rounds in another way:
// few elements may differ at all.
inline void check_rounded(const std::vector<float>& found, const std::vector<float>& expected,
                          double tolerance) {
  double largest = 0.0;
  for (const float value : expected)
    if (std::isfinite(value)) largest = std::max(largest, std::abs(static_cast<double>(value)));
  std::size_t far = 0, different = 0;
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double a = static_cast<double>(found[i]), b = static_cast<double>(expected[i]);
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    ++different;
    const double unit = std::max(bf16_unit(a), bf16_unit(b));
    if (!(std::abs(a - b) <= unit + tolerance * largest)) ++far;
  }
  CHECK(far == 0);
  CHECK(different <= 1 + expected.size() / 50);
}

using OpBody = std::function<void(OpRun&)>;

// The types tensors of products and all between them may have.
inline constexpr DType kStoredTypes[] = {DType::f32, DType::bf16};

// Runs `body` on the CPU backend and, under every schedule, on the device. `tolerance`: of f32
// results, before any rounding to bf16.
inline void compare_backends(const OpBody& body, double tolerance = 1e-5) {
  const auto cpu = make_cpu_ops();
  OpRun reference(*cpu);
  body(reference);
  const auto expected = reference.results();
  const auto cuda = make_cuda_ops(0);
  std::vector<OpRun::Result> first;
  for (int schedule = 0; schedule < kNumSchedules; ++schedule) {
    choose_schedule(schedule);
    OpRun run(*cuda);
    body(run);
    const auto found = run.results();
    REQUIRE(found.size() == expected.size());
    if (schedule == 0) first = found;
    for (std::size_t i = 0; i < found.size(); ++i) {
      INFO("tensor " << found[i].name << ", schedule " << schedule);
      if (found[i].is_exact)
        CHECK(same_bits(found[i].floats, expected[i].floats));
      else if (found[i].dtype == DType::bf16 && expected[i].dtype == DType::bf16)
        check_rounded(found[i].floats, expected[i].floats, tolerance);
      else
        CHECK(relative_difference(found[i].floats, expected[i].floats) <= tolerance);
      CHECK(found[i].ints == expected[i].ints);
      CHECK(relative_difference(found[i].numbers, expected[i].numbers) <= tolerance);
      CHECK(same_bits(found[i].floats, first[i].floats));
      CHECK(same_bits(found[i].numbers, first[i].numbers));
    }
  }
  choose_schedule(0);
}

}  // namespace openmoe::test
