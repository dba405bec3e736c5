// Statistics of routing on constructed routings whose answers are known.
#include <algorithm>
#include <cmath>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/routing/drops.h"
#include "core/routing/resampling.h"
#include "core/routing/statistics.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"

namespace openmoe::test {
namespace {

// Sequences of T tokens, one document each, from `sources` sources in turn; ids and experts as two
// functions of (sequence, position) say.
template <typename Id, typename Experts>
RoutingTrace make_trace(std::int64_t sequences, std::int64_t length, std::int64_t num_experts,
                        std::int64_t num_sources, Id id, Experts experts) {
  RoutingTrace trace;
  trace.num_experts = num_experts;
  trace.top_k = 2;
  trace.sequence_length = length;
  trace.layers.resize(1);
  trace.layers[0].layer = 1;
  for (std::int64_t source = 0; source < num_sources; ++source)
    trace.sources.push_back("source " + std::to_string(source));
  for (std::int64_t s = 0; s < sequences; ++s) {
    const auto source = static_cast<std::int32_t>(s * num_sources / sequences);
    trace.documents.push_back({source, ""});
    trace.sequence_sources.push_back(source);
    for (std::int64_t t = 0; t < length; ++t) {
      trace.token_ids.push_back(static_cast<std::int32_t>(id(s, t)));
      trace.document.push_back(static_cast<std::int32_t>(s));
      const auto [first, second] = experts(s, t, id(s, t));
      trace.layers[0].choice.push_back(static_cast<std::uint16_t>(first));
      trace.layers[0].choice.push_back(static_cast<std::uint16_t>(second));
    }
    trace.sequence_offsets.push_back(static_cast<std::int64_t>(trace.token_ids.size()));
  }
  trace.check("test");
  return trace;
}

using Experts = std::pair<std::int64_t, std::int64_t>;

std::int64_t random_below(std::uint64_t index, std::uint64_t bound, const char* name) {
  return static_cast<std::int64_t>(Rng(7, stream_id(name)).bits_at(index) % bound);
}

constexpr std::int64_t kSequences = 40, kLength = 64, kIds = 32, kExperts = 4;

std::int64_t random_id(std::int64_t s, std::int64_t t) {
  return random_below(static_cast<std::uint64_t>(s * kLength + t), kIds, "ids");
}

RoutingTrace token_determined() {
  return make_trace(
      kSequences, kLength, kExperts, 2, random_id,
      [](std::int64_t, std::int64_t, std::int64_t id) { return Experts(id % 4, (id + 1) % 4); });
}

RoutingTrace uniform() {
  return make_trace(kSequences, kLength, kExperts, 2, random_id,
                    [](std::int64_t s, std::int64_t t, std::int64_t) {
                      const std::int64_t first = random_below(
                          static_cast<std::uint64_t>(s * kLength + t), kExperts, "experts");
                      return Experts(first, (first + 2) % 4);
                    });
}

RoutingTrace position_determined() {
  return make_trace(
      kSequences, kLength, kExperts, 2, random_id,
      [](std::int64_t, std::int64_t t, std::int64_t) { return Experts(t % 4, (t + 1) % 4); });
}

RoutingTrace source_determined() {
  return make_trace(kSequences, kLength, kExperts, 2, random_id,
                    [](std::int64_t s, std::int64_t t, std::int64_t) {
                      const std::int64_t base = s < kSequences / 2 ? 0 : 2;
                      return Experts(base + t % 2, base + (t + 1) % 2);
                    });
}

std::vector<std::int32_t> sources_of(const RoutingTrace& trace) {
  std::vector<std::int32_t> keys;
  for (const std::int32_t document : trace.document)
    keys.push_back(trace.documents[static_cast<std::size_t>(document)].source);
  return keys;
}

Information information(const RoutingTrace& trace, const std::vector<std::int32_t>& values) {
  const DistinctKeys keys = distinct_keys(values);
  return mutual_information(count_experts(trace, trace.layers[0], keys.keys,
                                          static_cast<std::int64_t>(keys.values.size()),
                                          Counted::first));
}

Prediction prediction(const RoutingTrace& trace, const std::vector<std::int32_t>& values,
                      bool first = true) {
  const DistinctKeys keys = distinct_keys(values);
  return predict_experts(trace, trace.layers[0], keys.keys,
                         static_cast<std::int64_t>(keys.values.size()), first, 200, 1);
}

GroupDifference difference(const RoutingTrace& trace) {
  std::vector<std::int32_t> groups;
  for (const DocumentOrigin& origin : trace.documents) groups.push_back(origin.source);
  return permutation_test(
      count_experts(trace, trace.layers[0], trace.document,
                    static_cast<std::int64_t>(trace.documents.size()), Counted::first),
      groups, 2, 199, 1);
}

}  // namespace

TEST_CASE("information and prediction of a routing that the token id determines", "[routing]") {
  const RoutingTrace trace = token_determined();
  const Information by_id = information(trace, trace.token_ids);
  CHECK(by_id.bits == Approx(by_id.expert_entropy));
  CHECK(by_id.expert_entropy > 1.99);
  CHECK(information(trace, trace.positions()).corrected_bits < 0.05);
  CHECK(information(trace, trace.previous_tokens()).corrected_bits < 0.05);
  CHECK(information(trace, sources_of(trace)).corrected_bits < 0.01);

  const Prediction exact = prediction(trace, trace.token_ids);
  CHECK(exact.accuracy == 1.0);
  CHECK(exact.low == 1.0);
  CHECK(exact.tokens == kSequences * kLength);
  CHECK(prediction(trace, trace.token_ids, false).accuracy == 1.0);
  CHECK(prediction(trace, trace.positions()).accuracy < 0.4);
  CHECK(difference(trace).p_value > 0.01);
}

TEST_CASE("information and prediction of uniform routing", "[routing]") {
  const RoutingTrace trace = uniform();
  const Information by_id = information(trace, trace.token_ids);
  CHECK(by_id.bits > by_id.corrected_bits);  // what finite counts seem to say
  CHECK(by_id.corrected_bits < 0.03);
  CHECK(by_id.expert_entropy == Approx(2.0).margin(0.01));
  const Prediction guess = prediction(trace, trace.token_ids);
  CHECK(guess.low < 0.27);
  CHECK(guess.high > 0.23);
  CHECK(guess.high - guess.low > 0.01);
  const GroupDifference none = difference(trace);
  CHECK(none.p_value > 0.01);
  CHECK(none.divergence < 0.01);
}

TEST_CASE("information of a routing that the position determines", "[routing]") {
  const RoutingTrace trace = position_determined();
  CHECK(information(trace, trace.positions()).bits == Approx(2.0));
  CHECK(prediction(trace, trace.positions()).accuracy == 1.0);
  CHECK(prediction(trace, trace.token_ids).accuracy < 0.4);
  CHECK(information(trace, trace.token_ids).corrected_bits < 0.05);
  CHECK(difference(trace).divergence == Approx(0.0).margin(1e-12));
}

TEST_CASE("the divergence of sources that share no expert", "[routing]") {
  const RoutingTrace trace = source_determined();
  const GroupDifference apart = difference(trace);
  CHECK(apart.divergence == Approx(1.0));  // log2 of two sources
  CHECK(apart.p_value == Approx(1.0 / 200.0));
  CHECK(apart.null_p95 < 0.5);
  CHECK(apart.documents == kSequences);
  CHECK(information(trace, sources_of(trace)).bits == Approx(1.0));
}

// Re-grouping documents of which each is a group changes nothing but the order of sums.
TEST_CASE("a permutation test of one document for each group has p = 1", "[routing]") {
  CountTable by_document(5, 7);
  for (std::size_t i = 0; i < by_document.counts.size(); ++i)
    by_document.counts[i] = static_cast<std::int64_t>(i * i % 23 + 1);
  CHECK(permutation_test(by_document, {0, 1, 2, 3, 4}, 5, 999, 1).p_value == 1.0);
  CHECK(permutation_test(by_document, {4, 2, 0, 1, 3}, 5, 999, 2).p_value == 1.0);
}

TEST_CASE("a prediction without a second half, or without resamples, is not known", "[routing]") {
  RoutingTrace trace = token_determined();
  const std::vector<std::int32_t> keys = distinct_keys(trace.token_ids).keys;
  const Prediction point = predict_experts(
      trace, trace.layers[0], keys, 1 + *std::max_element(keys.begin(), keys.end()), true, 0, 1);
  CHECK(point.accuracy == 1.0);
  CHECK(std::isnan(point.low));
  CHECK(std::isnan(point.high));
  trace.documents.resize(1);
  std::fill(trace.document.begin(), trace.document.end(), 0);
  const Prediction none = prediction(trace, trace.token_ids);
  CHECK(none.tokens == 0);
  CHECK(std::isnan(none.accuracy));
  CHECK(std::isnan(none.low));
}

TEST_CASE("mutual information of a table by hand", "[routing]") {
  CountTable table(2, 2);
  table.counts = {3, 1, 1, 3};
  const Information result = mutual_information(table);
  // H(expert) = 1; H(expert | row) = -(3/4 log2 3/4 + 1/4 log2 1/4) = 0.811278
  CHECK(result.bits == Approx(1.0 - 0.8112781245));
  CHECK(result.expert_entropy == Approx(1.0));
  // (4 cells - 2 rows - 2 columns + 1) / (2 * 8) nats
  CHECK(result.corrected_bits == Approx(result.bits - 1.0 / 16.0 / std::log(2.0)));
  CHECK(jensen_shannon(table) == Approx(result.bits));  // rows of equal size
  CHECK(standard_deviation(table.shares(0)) == Approx(0.25));
  CHECK(overlap(table.shares(0), table.shares(1)) == Approx(0.5));
  CHECK(mutual_information(CountTable(2, 2)).bits == 0.0);
}

TEST_CASE("agreement of two checkpoints on the same ids", "[routing]") {
  TokenTable a, b;
  a.ids = {1, 4, 9};
  a.table = CountTable(3, 2);
  a.table.counts = {4, 0, 2, 2, 1, 0};
  b.ids = {1, 9, 12};
  b.table = CountTable(3, 2);
  b.table.counts = {1, 3, 5, 0, 9, 9};
  const Agreement all = compare_tokens(a, b, 1);
  CHECK(all.ids == 2);
  CHECK(all.same_favourite == 0.5);
  CHECK(all.mean_overlap == Approx((8 * 0.25 + 6 * 1.0) / 14));
  CHECK(compare_tokens(a, b, 2).ids == 1);
  CHECK(compare_tokens(a, a, 1).mean_overlap == Approx(1.0));
  CHECK(compare_tokens(a, b, 100).ids == 0);
}

// One group of 6 tokens, 2 experts; first choices 0 0 0 1 0 1, second the other expert.
TEST_CASE("drops of a group by hand", "[routing]") {
  const std::vector<std::int64_t> first = {0, 0, 0, 1, 0, 1};
  const RoutingTrace trace = make_trace(
      1, 6, 2, 1, [](std::int64_t, std::int64_t t) { return t; },
      [&](std::int64_t, std::int64_t t, std::int64_t) {
        const std::int64_t e = first[static_cast<std::size_t>(t)];
        return Experts(e, 1 - e);
      });
  DropRule rule;
  rule.group_tokens = 6;
  rule.min_capacity = 1;
  rule.capacity_factor = 1.0;  // C = 3
  CHECK(rule.capacity(2, 2) == 3);
  // Expert 0 takes tokens 0 1 2, then 4 meets a full queue; expert 1 takes 3 5, then the second
  // choice of 0.
  CHECK(simulate_drops(trace, trace.layers[0], rule) ==
        std::vector<std::uint8_t>{1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0});
  const auto kept = simulate_drops(trace, trace.layers[0], rule);
  const DropCounts all = count_drops(kept, 2, std::vector<std::int32_t>(6, 0), 1)[0];
  CHECK(all.tokens == 6);
  CHECK(all.lost_first == 1);
  CHECK(all.lost_second == 5);
  CHECK(all.lost_any == 5);
  CHECK(all.lost_all == 1);
  const auto by_half = count_drops(kept, 2, {0, 0, 0, 1, 1, -1}, 2);
  CHECK(by_half[0].lost_second == 2);
  CHECK(by_half[1].tokens == 2);
  CHECK(by_half[1].lost_all == 1);

  rule.group_tokens = 3;  // two groups, C = round(1.5) = 2
  CHECK(simulate_drops(trace, trace.layers[0], rule) ==
        std::vector<std::uint8_t>{1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0});
  rule.counts = CapacityCounts::assignments;  // C = 3
  CHECK(rule.capacity(2, 2) == 3);
  rule.counts = CapacityCounts::port;  // floor(3) made even
  CHECK(rule.capacity(2, 2) == 4);
  const auto dropless = simulate_drops(trace, trace.layers[0], rule);
  CHECK(std::count(dropless.begin(), dropless.end(), 1) == 12);
}

TEST_CASE("groups of drops begin anew with each source", "[routing]") {
  // Two sources of one sequence of 2 tokens, all to expert 0; a group would hold both sequences.
  const RoutingTrace trace = make_trace(
      2, 2, 2, 2, [](std::int64_t, std::int64_t t) { return t; },
      [](std::int64_t, std::int64_t, std::int64_t) { return Experts(0, 1); });
  DropRule rule;
  rule.group_tokens = 4;
  rule.min_capacity = 1;
  rule.capacity_factor = 1.0;  // C = 2
  const auto kept = simulate_drops(trace, trace.layers[0], rule);
  CHECK(std::count(kept.begin(), kept.end(), 1) == 8);
}

// What another system writes as it comes: sequences of two sources in turns.
TEST_CASE("groups of drops are those of a source wherever its sequences stand", "[routing]") {
  const auto experts = [](std::int64_t s, std::int64_t t) { return (s / 2 + t) % 3 == 0 ? 0 : 1; };
  RoutingTrace turns = make_trace(
      8, 2, 2, 1, [](std::int64_t, std::int64_t t) { return t; },
      [&](std::int64_t s, std::int64_t t, std::int64_t) {
        return Experts(experts(s, t), 1 - experts(s, t));
      });
  turns.sources = {"a", "b"};
  RoutingTrace sorted = turns;
  for (std::size_t s = 0; s < 8; ++s) {
    turns.sequence_sources[s] = turns.documents[s].source = static_cast<std::int32_t>(s % 2);
    sorted.sequence_sources[s] = sorted.documents[s].source = static_cast<std::int32_t>(s / 4);
  }
  // Sequence s of `sorted` is that of the same place in its source of `turns`.
  const auto in_turns = [](std::size_t s) { return s % 4 * 2 + s / 4; };
  for (std::size_t s = 0; s < 8; ++s)
    for (std::size_t i = 0; i < 4; ++i)
      sorted.layers[0].choice[4 * s + i] = turns.layers[0].choice[4 * in_turns(s) + i];
  DropRule rule;
  rule.group_tokens = 8;  // four sequences
  rule.min_capacity = 1;
  rule.capacity_factor = 0.75;
  const auto kept = simulate_drops(turns, turns.layers[0], rule);
  const auto expected = simulate_drops(sorted, sorted.layers[0], rule);
  CHECK(std::count(kept.begin(), kept.end(), 0) > 0);
  for (std::size_t s = 0; s < 8; ++s)
    for (std::size_t i = 0; i < 4; ++i) CHECK(kept[4 * in_turns(s) + i] == expected[4 * s + i]);
}

// Documents of two sources in turns, whose experts differ: a half of one source alone would predict
// the other, and be wrong everywhere.
TEST_CASE("both halves of a prediction hold documents of every source", "[routing]") {
  RoutingTrace trace = make_trace(
      8, 16, 2, 1, [](std::int64_t, std::int64_t) { return 3; },
      [](std::int64_t s, std::int64_t, std::int64_t) { return Experts(s % 2, 1 - s % 2); });
  trace.sources = {"a", "b"};
  std::vector<std::int32_t> ids;
  for (std::size_t n = 0; n < trace.token_ids.size(); ++n) {
    const auto document = static_cast<std::size_t>(trace.document[n]);
    trace.documents[document].source = static_cast<std::int32_t>(document % 2);
    ids.push_back(static_cast<std::int32_t>(document % 2));  // ids of a source are its own
  }
  CHECK(prediction(trace, ids).accuracy == 1.0);
}

TEST_CASE("drop rules on the command line", "[routing]") {
  const DropRule rule = parse_drop_rule("assignments:1.5:2048", 64);
  CHECK(rule.counts == CapacityCounts::assignments);
  CHECK(rule.capacity_factor == 1.5);
  CHECK(rule.group_tokens == 2048);
  CHECK(parse_drop_rule("port:2", 64).group_tokens == 64);
  CHECK(rule.name() == "assignments:1.5:2048");
  CHECK(parse_drop_rule(rule.name(), 1).name() == rule.name());
  const DropRule dropless = parse_drop_rule("dropless", 64);
  CHECK(dropless.capacity(8, 2) == 64);
  CHECK(parse_drop_rule(dropless.name(), 64) == dropless);
  for (const char* bad : {"", "tokens", "dropless:1.25", "slots:1", "tokens:x", "tokens:0",
                          "tokens:1:0", "tokens:1:2:3", "tokens:-1", "tokens:nan",
                          "tokens:1:1073741825", "tokens:1:9223372036854775807"}) {
    INFO(bad);
    CHECK(message_of<UserError>([&] { parse_drop_rule(bad, 64); }).find("allowed: tokens") !=
          std::string::npos);
  }
}

TEST_CASE("a trace that contradicts itself is refused", "[routing]") {
  const RoutingTrace good = uniform();
  const auto refused = [&](auto&& damage, const std::string& expected) {
    RoutingTrace trace = good;
    damage(trace);
    INFO(expected);
    CHECK(message_of<UserError>([&] { trace.check("log.h5"); }).find(expected) !=
          std::string::npos);
  };
  refused([](RoutingTrace& t) { t.layers[0].choice[5] = 4; }, "expert 4, allowed: 0 to 3");
  refused([](RoutingTrace& t) { t.layers[0].choice[1] = t.layers[0].choice[0]; }, "chosen twice");
  refused([](RoutingTrace& t) { t.layers[0].choice.pop_back(); }, "choices, allowed");
  refused([](RoutingTrace& t) { t.layers.clear(); }, "no layer");
  refused([](RoutingTrace& t) { t.layers.push_back(t.layers[0]); }, "stands there twice");
  refused([](RoutingTrace& t) { t.num_experts = 8193; }, "num_experts is 8193, allowed: 2 to 8192");
  refused([](RoutingTrace& t) { t.sequence_offsets.back() += 1; }, "offsets go from 0");
  refused([](RoutingTrace& t) { t.sequence_offsets[1] = t.sequence_offsets[2] + 1; }, "sequence 0");
  refused([](RoutingTrace& t) { t.sequence_sources[3] = 9; }, "source 9");
  refused([](RoutingTrace& t) { t.token_ids[8] = -2; }, "the id -2");
  refused([](RoutingTrace& t) { t.document[8] = 99; }, "document 99");
  refused([](RoutingTrace& t) { t.top_k = 5; }, "5 choices per token");
}

}  // namespace openmoe::test
