// RowSchedule: which source each row of a phase comes from, and how many rows that source gave
// before. Shares are exact in every period of rows; within a period the sources stand in a keyed
// random order. Both questions are answered for any row without looking at the rows before its
// period.
#pragma once

#include <cstdint>
#include <vector>

namespace openmoe {

class RowSchedule {
 public:
  // `weights`: shares of rows, any positive scale; (seed, stream): as for Rng. A period is the
  // shortest one, below 4096 rows, that gives every source a whole number of rows; else 16384 rows,
  // shares rounded by largest remainder (at least 1 row each).
  RowSchedule(const std::vector<double>& weights, std::uint64_t seed, std::uint64_t stream);

  struct Pick {
    std::int64_t source = 0;
    std::int64_t example =
        0;  // rows of this source before this one, counted from the start of the phase
  };
  Pick at(std::int64_t row) const;  // rows count from the start of the phase
  std::int64_t rows_before(std::int64_t row,
                           std::int64_t source) const;  // of this source among rows [0, row)
  std::int64_t period() const { return first_slot_.back(); }
  std::int64_t rows_per_period(std::int64_t source) const {
    return first_slot_[static_cast<std::size_t>(source) + 1] -
           first_slot_[static_cast<std::size_t>(source)];
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::vector<std::int64_t>
      first_slot_;  // slots [first_slot_[s], first_slot_[s + 1]) of a period belong to source s
};

}  // namespace openmoe
