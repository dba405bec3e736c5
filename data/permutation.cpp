#include "data/permutation.h"

#include <cmath>

#include "core/base/check.h"
#include "core/base/rng.h"

namespace openmoe {
namespace {

// A well mixed 32-bit word scaled to [0, bound); bound < 2^32.
std::uint64_t round_value(std::uint64_t half, std::uint64_t key, std::uint64_t bound) {
  std::uint64_t x = half ^ key;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return ((x >> 32) * bound) >> 32;
}

}  // namespace

Permutation::Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t stream) : n_(n) {
  OPENMOE_CHECK(n >= 1, "a permutation of ", n, " things");
  const auto size = static_cast<std::uint64_t>(n);
  a_ = static_cast<std::uint64_t>(std::sqrt(static_cast<double>(size)));
  while (a_ * a_ < size) ++a_;
  b_ = (size + a_ - 1) / a_;
  const Rng rng(seed, stream);
  for (int round = 0; round < kRounds; ++round)
    keys_[static_cast<std::size_t>(round)] = rng.bits_at(static_cast<std::uint64_t>(round));
}

std::int64_t Permutation::operator()(std::int64_t index) const {
  OPENMOE_DCHECK(index >= 0 && index < n_, index, " of ", n_);
  auto value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t high = value / b_;
    std::uint64_t low = value % b_;
    for (std::size_t round = 0; round < kRounds; round += 2) {
      high += round_value(low, keys_[round], a_);
      if (high >= a_) high -= a_;
      low += round_value(high, keys_[round + 1], b_);
      if (low >= b_) low -= b_;
    }
    value = high * b_ + low;
  } while (value >= static_cast<std::uint64_t>(n_));
  return static_cast<std::int64_t>(value);
}

}  // namespace openmoe
