// What is counted of a training step's routers, on a batch small enough to count by hand.
#include "core/routing/live_counts.h"

#include "test/support/catch.h"

namespace openmoe::test {
namespace {

// 2 rows of 4 tokens, the last one padding; 2 experts.
Batch small_batch() {
  Batch batch;
  batch.resize(2, 4);
  batch.inputs = {0, 5, 5, 7, 0, 5, 7, 0};
  batch.segment_ids = {1, 1, 1, 1, 1, 1, 1, 0};
  batch.row_sources = {1, 0};
  return batch;
}

const std::vector<std::int32_t> kChoice = {0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1};
const std::vector<std::int32_t> kSlot = {0, 2, 1, -1, 0, -1, -1, -1, 0, 1, 0, 1, 1, -1, -1, -1};

LiveCounts counted() {
  LiveCounts counts(1, 2, 3, 4, {5, 7});
  const std::vector<float> prob = {0.5f, 0.5f, 1, 0, 0, 1, 1, 0, 0.5f, 0.5f, 0, 1, 1, 0, 1, 0};
  counts.add(0, small_batch(), {kChoice.data(), kSlot.data(), prob.data()});
  return counts;
}

}  // namespace

TEST_CASE("live counts by hand", "[routing]") {
  const LiveCounts counts = counted();
  const LiveCounts::Layer& layer = counts.layers()[0];
  CHECK(layer.first == std::vector<std::int64_t>{5, 2});
  CHECK(layer.second == std::vector<std::int64_t>{2, 5});
  CHECK(layer.kept == std::vector<std::int64_t>{5, 4});
  const LiveCounts::Losses total = counts.total(0);
  CHECK(total.tokens == 7);
  CHECK(total.first == 1);
  CHECK(total.second == 4);
  CHECK(total.both == 1);
  CHECK(layer.by_source[1].tokens == 4);
  CHECK(layer.by_source[1].both == 1);
  CHECK(layer.by_source[0].second == 1);
  CHECK(layer.by_source[2].tokens == 0);
  // 4 positions in 16 buckets: 0, 4, 8, 12
  CHECK(layer.by_position[0].tokens == 2);
  CHECK(layer.by_position[4].second == 1);
  CHECK(layer.by_position[12].first == 1);
  CHECK(layer.token_first == std::vector<std::int64_t>{1, 2, 2, 0});  // ids 5 and 7
  CHECK(layer.entropy == Approx(2.0));
  CHECK(layer.confidence == Approx(6.0));
}

TEST_CASE("live counts of ranks add up", "[routing]") {
  const LiveCounts one = counted();
  std::vector<std::int64_t> integers = one.integers();
  std::vector<double> reals = one.reals();
  for (std::int64_t& value : integers) value *= 2;
  for (double& value : reals) value *= 2;
  LiveCounts both(1, 2, 3, 4, {5, 7});
  both.assign(integers, reals);
  CHECK(both.total(0).tokens == 14);
  CHECK(both.layers()[0].kept == std::vector<std::int64_t>{10, 8});
  CHECK(both.layers()[0].confidence == Approx(12.0));
  CHECK(both.integers() == integers);
}

TEST_CASE("the most frequent ids", "[routing]") {
  CHECK(most_frequent_ids({0, 3, 9, 3, 1}, 3) == std::vector<std::int32_t>{1, 2, 3});
  CHECK(most_frequent_ids({0, 3, 0}, 5) == std::vector<std::int32_t>{1});
}

}  // namespace openmoe::test
