// Counter-based random numbers (Philox4x32-10; Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3", through the Random123 library). A value is a pure function of (seed, stream,
// index): never of a rank, a thread or a call order, which is what lets results be independent of
// the grid.
#pragma once

#include <cstdint>
#include <string_view>

namespace openmoe {

class Rng {
 public:
  // `stream` separates independent uses of one seed (a parameter, a row of a batch, ...): see
  // stream_id.
  Rng(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  // The index-th value of the stream; random access, no state.
  std::uint64_t bits_at(std::uint64_t index) const;
  double uniform_at(std::uint64_t index) const;  // in [0, 1), 53 bits
  // Standard normal by the Box-Muller transform of the index-th pair of words.
  double normal_at(std::uint64_t index) const;
  // Standard normal conditioned on [-2, 2], by rejection.
  double truncated_normal_at(std::uint64_t index) const;

  // Sequential use: each call takes the next index.
  std::uint64_t next_bits() { return bits_at(next_++); }
  double next_uniform() { return uniform_at(next_++); }
  // Uniform on {0, ..., bound - 1}, bound >= 1, without bias.
  std::uint64_t next_below(std::uint64_t bound);

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t next_ = 0;
};

// A stream number from a name and up to two integers, well mixed.
std::uint64_t stream_id(std::string_view name, std::uint64_t a = 0, std::uint64_t b = 0);

}  // namespace openmoe
