// Permutation: a keyed pseudo-random bijection of {0, ..., n - 1}, evaluated at single points in
// constant memory. It gives every epoch of a source its own order of documents without storing that
// order.
//
// A generalised Feistel network on Z_a x Z_b with a * b >= n (Black and Rogaway 2002, "Ciphers with
// arbitrary finite domains"); values at or beyond n walk on until they fall inside, at most one
// extra step on average.
#pragma once

#include <array>
#include <cstdint>

namespace openmoe {

class Permutation {
 public:
  // seed and stream as for Rng. n >= 1.
  Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t stream);

  std::int64_t size() const { return n_; }
  std::int64_t operator()(std::int64_t index) const;

 private:
  static constexpr int kRounds = 8;
  std::int64_t n_ = 1;
  std::uint64_t a_ = 1;  // a >= b, a * b >= n
  std::uint64_t b_ = 1;
  std::array<std::uint64_t, kRounds> keys_{};
};

}  // namespace openmoe
