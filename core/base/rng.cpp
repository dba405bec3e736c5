#include "core/base/rng.h"

#include <Random123/philox.h>

#include <cmath>
#include <numbers>

namespace openmoe {
namespace {

struct Words {
  std::uint64_t first;
  std::uint64_t second;
};

// One Philox block: 128 bits from (seed, stream, index).
Words block(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  using Generator = r123::Philox4x32;
  const auto low = [](std::uint64_t word) { return static_cast<std::uint32_t>(word); };
  const auto high = [](std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); };
  Generator::ctr_type counter = {{low(index), high(index), low(stream), high(stream)}};
  Generator::key_type key = {{low(seed), high(seed)}};
  const Generator::ctr_type out = Generator()(counter, key);
  return {out[0] | static_cast<std::uint64_t>(out[1]) << 32,
          out[2] | static_cast<std::uint64_t>(out[3]) << 32};
}

constexpr double kUnit = 1.0 / 9007199254740992.0;  // 2^-53

double to_uniform(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * kUnit;
}

// Finalizer of SplitMix64 (Steele et al. 2014): a bijection that mixes all bits.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

std::uint64_t Rng::bits_at(std::uint64_t index) const {
  return block(seed_, stream_, index).first;
}

double Rng::uniform_at(std::uint64_t index) const {
  return to_uniform(bits_at(index));
}

double Rng::normal_at(std::uint64_t index) const {
  const Words words = block(seed_, stream_, index);
  const double radius = std::sqrt(-2.0 * std::log(1.0 - to_uniform(words.first)));
  return radius * std::cos(2.0 * std::numbers::pi * to_uniform(words.second));
}

double Rng::truncated_normal_at(std::uint64_t index) const {
  // Rejection on the sub-stream of this index: about 1.05 tries on average.
  Rng tries(seed_ ^ 0x9e3779b97f4a7c15ULL, mix(stream_ + mix(index)));
  for (;;) {
    const double value = tries.normal_at(tries.next_++);
    if (std::abs(value) <= 2.0) return value;
  }
}

std::uint64_t Rng::next_below(std::uint64_t bound) {
  const std::uint64_t limit = -bound % bound;  // 2^64 mod bound: values below it would bias
  for (;;) {
    const std::uint64_t bits = next_bits();
    if (bits >= limit) return bits % bound;
  }
}

std::uint64_t stream_id(std::string_view name, std::uint64_t a, std::uint64_t b) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) hash = mix(hash ^ static_cast<unsigned char>(c));
  return mix(mix(hash + a) + b);
}

}  // namespace openmoe
