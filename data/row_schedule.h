// RowSchedule: which source each row of a stretch of training comes from, and how many rows that
// source gave before. Both questions are answered for any row without looking at the rows before.
#pragma once

#include <cstdint>
#include <vector>

namespace openmoe {

class RowSchedule {
 public:
  virtual ~RowSchedule() = default;

  struct Pick {
    std::int64_t source = 0;
    std::int64_t example = 0;  // rows of this source before this one
  };
  // Rows count from the start of the stretch. Not thread-safe: the last block of rows is kept.
  virtual Pick at(std::int64_t row) = 0;
  // Rows of this source among rows [0, row).
  virtual std::int64_t rows_before(std::int64_t row, std::int64_t source) = 0;
};

// Constant shares, exact in every period of rows; within a period the sources stand in a keyed
// random order. A period is the shortest one, below 4096 rows, that gives every source a whole
// number of rows, repeated up to 256 rows or more; if there is none, 16384 rows, shares rounded by
// largest remainder (at least 1 row each).
class FixedSchedule : public RowSchedule {
 public:
  // `weights`: shares of rows, above 0, any scale; (seed, stream): as for Rng.
  FixedSchedule(const std::vector<double>& weights, std::uint64_t seed, std::uint64_t stream);
  Pick at(std::int64_t row) override;
  std::int64_t rows_before(std::int64_t row, std::int64_t source) override;

  std::int64_t period() const { return first_slot_.back(); }
  std::int64_t rows_per_period(std::int64_t source) const {
    return first_slot_[static_cast<std::size_t>(source) + 1] -
           first_slot_[static_cast<std::size_t>(source)];
  }

 private:
  const std::vector<Pick>& period_rows(std::int64_t number);

  std::uint64_t seed_;
  std::uint64_t stream_;
  // Slots [first_slot_[s], first_slot_[s + 1]) of a period belong to source s.
  std::vector<std::int64_t> first_slot_;
  std::int64_t cached_period_ = -1;
  std::vector<Pick> rows_;  // of the cached period; examples count within it
};

// Shares that move linearly from `from` to `to` over num_steps steps. Each step gives every source
// the whole number of rows that keeps its running total within one row of the exact one; a table of
// these totals answers both questions.
class BlendSchedule : public RowSchedule {
 public:
  // Weights of the same sources, 0 or more, any scale.
  BlendSchedule(const std::vector<double>& from, const std::vector<double>& to,
                std::int64_t num_steps, std::int64_t rows_per_step, std::uint64_t seed,
                std::uint64_t stream);
  Pick at(std::int64_t row) override;
  std::int64_t rows_before(std::int64_t row, std::int64_t source) override;

 private:
  const std::vector<Pick>& step_rows(std::int64_t step);
  std::int64_t total(std::int64_t step, std::int64_t source) const {
    return totals_[static_cast<std::size_t>(step * num_sources_ + source)];
  }
  std::int64_t num_sources_;
  std::int64_t rows_per_step_;
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::int64_t cached_step_ = -1;
  std::vector<Pick> rows_;            // of the cached step; examples count within it
  std::vector<std::int64_t> totals_;  // (num_steps + 1, sources): rows given before each step
};

}  // namespace openmoe
