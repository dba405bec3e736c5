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
#include "test/support/catch.h"

namespace openmoe::test {

class OpRun {
 public:
  explicit OpRun(Ops& ops) : ops_(ops) {}
  ~OpRun() {
    for (const Held& held : held_) ops_.free_bytes(held.block, held.block_bytes);
  }
  OpRun(const OpRun&) = delete;
  OpRun& operator=(const OpRun&) = delete;

  Ops& ops() { return ops_; }

  // Normal values, the same for every backend, a function of the name. `misaligned`: the tensor
  // begins one element past an aligned address, so that no vector access fits.
  Tensor normal(const std::string& name, const Shape& shape, double scale = 1.0,
                bool misaligned = false) {
    return floats(name, shape, normal_values(name, shape, scale), misaligned);
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
  Tensor poisoned(const std::string& name, const Shape& shape, bool misaligned = false) {
    return floats(name, shape,
                  std::vector<float>(static_cast<std::size_t>(shape.num_elements()),
                                     std::numeric_limits<float>::quiet_NaN()),
                  misaligned);
  }
  Tensor floats(const std::string& name, const Shape& shape, const std::vector<float>& values,
                bool misaligned = false) {
    return make(name, shape, DType::f32, values.data(), misaligned);
  }
  // The same values rounded to bf16: stored so on the device, as f32 on the CPU backend, whose
  // results are then those of exact storage.
  Tensor bf16(const std::string& name, const Shape& shape, const std::vector<float>& values,
              bool misaligned = false) {
    std::vector<BFloat16> rounded;
    std::vector<float> widened;
    for (const float value : values) {
      rounded.emplace_back(value);
      widened.push_back(static_cast<float>(rounded.back()));
    }
    if (ops_.device() == Device::host) return floats(name, shape, widened, misaligned);
    return make(name, shape, DType::bf16, rounded.data(), misaligned);
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

  std::vector<float> read_floats(const Tensor& x) {
    std::vector<float> values(static_cast<std::size_t>(x.num_elements()));
    if (x.dtype == DType::bf16) {
      std::vector<BFloat16> stored(values.size());
      if (!values.empty()) ops_.copy(host_view(stored.data(), x.shape), x);
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(stored[i]);
      return values;
    }
    if (!values.empty()) ops_.copy(host_view(values.data(), x.shape), x);
    return values;
  }
  std::vector<std::int32_t> read_ints(const Tensor& x) {
    std::vector<std::int32_t> values(static_cast<std::size_t>(x.num_elements()));
    if (!values.empty()) ops_.copy(host_view(values.data(), x.shape), x);
    return values;
  }

  // What the body computed: every tensor it made, and every number.
  struct Result {
    std::string name;
    std::vector<float> floats;
    std::vector<std::int32_t> ints;
    std::vector<double> numbers;
  };
  std::vector<Result> results() {
    std::vector<Result> all;
    for (const Held& held : held_)
      if (held.tensor.dtype != DType::i32)
        all.push_back({held.name, read_floats(held.tensor), {}, {}});
      else
        all.push_back({held.name, {}, read_ints(held.tensor), {}});
    for (const auto& [name, value] : numbers_) all.push_back({name, {}, {}, {value}});
    return all;
  }

 private:
  struct Held {
    std::string name;
    void* block;
    std::int64_t block_bytes;
    Tensor tensor;
  };

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

using OpBody = std::function<void(OpRun&)>;

// Runs `body` on the CPU backend and, under every schedule, on the device.
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
