// Several ranks that share a tensor, played one after the other by one process. An op on a shared
// tensor asks what its sums are over all ranks, which is known only when all ranks have come that
// far: so the whole is run again and again, each time with one answer more, and the last time with
// all of them.
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "test/cuda/op_run.h"

namespace openmoe::test {

// Numbers are added up in the order of ranks; logit sums have a rule of their own (core/ops.h).
inline double joined(double a, double b) {
  return a + b;
}

template <typename Value>
class PlayedRanks {
 public:
  explicit PlayedRanks(int num_ranks) : num_ranks_(num_ranks) {}

  // What a rank hands to its ops: in place, over the ranks. Valid during body().
  using Sum = std::function<void(std::span<Value>)>;
  // body(run, rank, sum) computes what one rank computes, from the start. All its tensors are in
  // `run`, and all ranks' tensors of the last time.
  void play(OpRun& run, const std::function<void(OpRun&, int, const Sum&)>& body) {
    answers_.clear();
    while (round(run.ops(), body)) {
    }
    for (int rank = 0; rank < num_ranks_; ++rank) body(run, rank, sum_of_rank());
  }
  // How often each rank asked.
  std::size_t num_sums() const { return answers_.size(); }

 private:
  bool round(Ops& ops, const std::function<void(OpRun&, int, const Sum&)>& body) {
    parts_.clear();
    for (int rank = 0; rank < num_ranks_; ++rank) {
      OpRun trial(ops);
      body(trial, rank, sum_of_rank());
      REQUIRE((parts_.empty() || parts_.size() == static_cast<std::size_t>(rank) + 1));
    }
    if (parts_.empty()) return false;
    std::vector<Value> total = parts_.front();
    for (int rank = 1; rank < num_ranks_; ++rank) {
      const std::vector<Value>& part = parts_[static_cast<std::size_t>(rank)];
      REQUIRE(part.size() == total.size());
      for (std::size_t i = 0; i < total.size(); ++i) total[i] = joined(total[i], part[i]);
    }
    answers_.push_back(total);
    return true;
  }

  Sum sum_of_rank() {
    return [this, call = std::size_t{0}](std::span<Value> values) mutable {
      if (call == answers_.size()) parts_.emplace_back(values.begin(), values.end());
      if (call < answers_.size()) {
        REQUIRE(answers_[call].size() == values.size());
        std::copy(answers_[call].begin(), answers_[call].end(), values.begin());
      }
      ++call;
    };
  }

  int num_ranks_;
  std::vector<std::vector<Value>> answers_;
  std::vector<std::vector<Value>> parts_;  // of one more question, by rank
};

}  // namespace openmoe::test
