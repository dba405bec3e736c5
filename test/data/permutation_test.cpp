#include "data/permutation.h"

#include <algorithm>
#include <vector>

#include "data/row_schedule.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

TEST_CASE("permutation: a bijection at every size, another one for every key") {
  for (std::int64_t n = 1; n <= 300; ++n) {
    const Permutation order(n, 7, static_cast<std::uint64_t>(n));
    std::vector<int> seen(static_cast<std::size_t>(n), 0);
    for (std::int64_t i = 0; i < n; ++i) ++seen.at(static_cast<std::size_t>(order(i)));
    REQUIRE(std::count(seen.begin(), seen.end(), 1) == n);
  }
  const Permutation first(100003, 7, 1);
  const Permutation second(100003, 7, 2);
  std::vector<bool> seen(100003);
  std::int64_t equal = 0;
  for (std::int64_t i = 0; i < 100003; ++i) {
    seen[static_cast<std::size_t>(first(i))] = true;
    equal += first(i) == second(i);
  }
  CHECK(std::count(seen.begin(), seen.end(), true) == 100003);
  CHECK(equal < 20);
}

TEST_CASE("permutation: all orders of four things turn up about equally often") {
  std::vector<int> counts(256, 0);
  constexpr int kDraws = 24000;
  for (int key = 0; key < kDraws; ++key) {
    const Permutation order(4, 1, static_cast<std::uint64_t>(key));
    ++counts[static_cast<std::size_t>(order(0) * 64 + order(1) * 16 + order(2) * 4 + order(3))];
  }
  CHECK(std::count_if(counts.begin(), counts.end(), [](int count) { return count > 0; }) == 24);
  double chi_square = 0.0;
  for (const int count : counts)
    if (count > 0) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  CHECK(chi_square < 49.8);  // 23 degrees of freedom, 99.9%
}

TEST_CASE("row schedule: shares are exact in each period, example numbers are dense") {
  const RowSchedule schedule({15, 4.5, 2, 2.5, 4.5, 4.5, 67, 100}, 3,
                             9);  // version I: weights of a sum of 200
  CHECK(schedule.period() == 400);
  CHECK(schedule.rows_per_period(0) == 30);
  CHECK(schedule.rows_per_period(7) == 200);
  std::vector<std::int64_t> next(8, 0);
  for (std::int64_t row = 0; row < 1000; ++row) {
    const RowSchedule::Pick pick = schedule.at(row);
    // Within a period the numbers come in random order; over a whole one they are complete.
    CHECK(pick.example / schedule.rows_per_period(pick.source) == row / 400);
    ++next[static_cast<std::size_t>(pick.source)];
    if (row % 97 == 0)
      for (std::int64_t s = 0; s < 8; ++s)
        REQUIRE(schedule.rows_before(row + 1, s) == next[static_cast<std::size_t>(s)]);
  }
}

TEST_CASE("row schedule: shares without a common period are rounded to 1 in 16384 rows") {
  const RowSchedule schedule({1.0, 3.14159265, 1e-7}, 3, 9);
  CHECK(schedule.period() == 16384);
  CHECK(schedule.rows_per_period(0) == Approx(16384 / 4.14159275).margin(1.0));
  CHECK(schedule.rows_per_period(2) == 1);
}

}  // namespace
}  // namespace openmoe
