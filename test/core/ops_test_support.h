// Shared by the tests of Ops: buffers in the memory of a backend, random values, derivatives by a
// complex step, and comparison with a worst error relative to the largest expected magnitude.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/ops.h"

namespace openmoe::test {

using Complex = std::complex<double>;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Ints = std::vector<std::int32_t>;

inline constexpr float kGarbage = std::numeric_limits<float>::quiet_NaN();

// A tensor in the memory of `ops`, freed with the object.
class Buffer {
 public:
  template <typename T>
  Buffer(Ops& ops, const Shape& shape, const std::vector<T>& values)
      : Buffer(ops, shape, DTypeOf<T>::value) {
    OPENMOE_CHECK(static_cast<std::int64_t>(values.size()) == shape.num_elements(), values.size(),
                  " for ", shape.to_string());
    std::vector<T> copy = values;
    ops.copy(tensor_, host_view(copy.data(), shape));
  }
  // Filled with one value, by default one that no result may keep.
  Buffer(Ops& ops, const Shape& shape, float value = kGarbage)
      : Buffer(ops, shape, Floats(static_cast<std::size_t>(shape.num_elements()), value)) {}
  ~Buffer() { ops_.free_bytes(tensor_.data, size_bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  operator Tensor() const { return tensor_; }
  template <typename T = float>
  std::vector<T> values() const {
    std::vector<T> result(static_cast<std::size_t>(tensor_.num_elements()));
    ops_.copy(host_view(result.data(), tensor_.shape), tensor_);
    return result;
  }

 private:
  Buffer(Ops& ops, const Shape& shape, DType dtype)
      : ops_(ops),
        size_bytes_(shape.num_elements() * size_of(dtype)),
        tensor_{ops.allocate_bytes(size_bytes_), dtype, ops.device(), shape} {}

  Ops& ops_;
  std::int64_t size_bytes_;
  Tensor tensor_;
};

inline Buffer i32_buffer(Ops& ops, const Shape& shape, std::int32_t value) {
  return Buffer(ops, shape, Ints(static_cast<std::size_t>(shape.num_elements()), value));
}

// Values of a test; each call continues the sequence.
class Random {
 public:
  explicit Random(std::uint64_t seed) : rng_(seed, stream_id("ops_test")) {}
  Floats normal(std::int64_t n, double scale = 1.0) {
    Floats values(static_cast<std::size_t>(n));
    for (float& value : values) value = static_cast<float>(scale * rng_.normal_at(counter_++));
    return values;
  }
  Floats normal(const Shape& shape, double scale = 1.0) {
    return normal(shape.num_elements(), scale);
  }
  // Uniform on {low, ..., high}.
  Ints integers(std::int64_t n, std::int32_t low, std::int32_t high) {
    Ints values(static_cast<std::size_t>(n));
    for (std::int32_t& value : values)
      value = low + static_cast<std::int32_t>(rng_.uniform_at(counter_++) * (high - low + 1));
    return values;
  }

 private:
  Rng rng_;
  std::uint64_t counter_ = 0;
};

template <typename To, typename From>
std::vector<To> convert(const std::vector<From>& values) {
  std::vector<To> result;
  result.reserve(values.size());
  for (const From& value : values) result.push_back(static_cast<To>(value));
  return result;
}

// d f / d x at x, one complex step per element; f(const std::vector<Complex>&) -> Complex.
template <class Function>
Doubles complex_step(const Floats& x, const Function& f) {
  constexpr double kStep = 1e-40;
  std::vector<Complex> point = convert<Complex>(x);
  Doubles gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double value = point[i].real();
    point[i] = Complex(value, kStep);
    gradient[i] = f(point).imag() / kStep;
    point[i] = value;
  }
  return gradient;
}

// sum of weight[i] * value[i]
inline Complex weighted_sum(const std::vector<Complex>& value, const Floats& weight) {
  Complex total = 0.0;
  for (std::size_t i = 0; i < weight.size(); ++i)
    total += static_cast<double>(weight[i]) * value[i];
  return total;
}

// The worst error over the largest expected magnitude; infinite for different sizes or a value that
// is not finite.
inline double relative_error(const Floats& found, const Doubles& expected) {
  if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double largest = 0.0, worst = 0.0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!std::isfinite(found[i])) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(static_cast<double>(found[i]) - expected[i]));
  }
  return worst == 0.0 ? 0.0 : worst / largest;
}

inline Doubles sum(const Doubles& a, const Floats& b) {
  Doubles total = a;
  for (std::size_t i = 0; i < total.size(); ++i) total[i] += static_cast<double>(b[i]);
  return total;
}

// What the router writes, in the memory of `ops`, filled with garbage.
class RouterBuffers {
 public:
  RouterBuffers(Ops& ops, std::int64_t N, std::int64_t E, std::int64_t G)
      : prob(ops, {N, E}),
        log_z(ops, {N}),
        gate(ops, {N, 2}),
        group_picks(ops, {N / G, E}),
        group_prob(ops, {N / G, E}),
        group_routed(ops, {N / G}),
        group_z(ops, {N / G}),
        choice(ops, {N, 2}, Ints(static_cast<std::size_t>(2 * N), -7)),
        slot(ops, {N, 2}, Ints(static_cast<std::size_t>(2 * N), -7)) {}
  RouterOutput output() const {
    return {prob, log_z, choice, gate, slot, group_picks, group_prob, group_routed, group_z};
  }

  Buffer prob, log_z, gate, group_picks, group_prob, group_routed, group_z, choice, slot;
};

}  // namespace openmoe::test
