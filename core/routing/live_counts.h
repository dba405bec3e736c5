// LiveCounts: what a training step's routers did, token by token, counted while it happens. Sums
// over micro-batches and ranks add up.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/batch.h"

namespace openmoe {

// One MoE layer's router on the host, of one micro-batch of N tokens.
struct RouterView {
  const std::int32_t* choice = nullptr;  // (N, 2)
  const std::int32_t* slot = nullptr;    // (N, 2), -1: dropped
  const float* prob = nullptr;           // (N, E)
};

class LiveCounts {
 public:
  static constexpr std::int64_t kBuckets = 16;  // of positions

  // tracked: ids whose experts are followed, rising.
  LiveCounts(std::int64_t num_layers, std::int64_t num_experts, std::int64_t num_sources,
             std::int64_t sequence_length, std::vector<std::int32_t> tracked);

  // Padding is left out.
  void add(std::size_t layer, const Batch& batch, const RouterView& router);

  struct Losses {
    std::int64_t tokens = 0, first = 0, second = 0, both = 0;
  };
  struct Layer {
    std::vector<std::int64_t> first, second, kept;  // (E)
    std::vector<Losses> by_position;                // (kBuckets)
    std::vector<Losses> by_source;                  // (num_sources)
    std::vector<std::int64_t> token_first;          // (tracked, E): first choices of tracked ids
    double entropy = 0.0;     // sum over tokens of that of the probabilities, bits
    double confidence = 0.0;  // sum over tokens of the largest probability
  };
  const std::vector<Layer>& layers() const { return layers_; }
  const std::vector<std::int32_t>& tracked() const { return tracked_; }
  Losses total(std::size_t layer) const;

  // All whole numbers, and all others, in a fixed order: for a reduction over ranks.
  std::vector<std::int64_t> integers() const;
  std::vector<double> reals() const;
  void assign(const std::vector<std::int64_t>& integers, const std::vector<double>& reals);

 private:
  void each_integer(const std::function<void(std::int64_t&)>& visit);

  std::int64_t num_experts_, length_;
  std::vector<std::int32_t> tracked_;
  std::vector<Layer> layers_;
};

// The ids that stand most often among `counts` (V), at most `most`, rising.
std::vector<std::int32_t> most_frequent_ids(const std::vector<std::int64_t>& counts,
                                            std::size_t most);

}  // namespace openmoe
