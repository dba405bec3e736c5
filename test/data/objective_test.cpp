#include "data/objective.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "core/base/error.h"
#include "data/denoising.h"
#include "test/data/data_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using test::sample;

const Tokenizer& tokenizer() {
  static const Tokenizer instance(sample("unigram-8000.model"), 300);
  return instance;
}

struct Row {
  RowPlan plan;
  std::vector<std::int32_t> raw;
  Batch batch;
};

// Row `index` of a period over recognisable tokens 1000, 1001, ...
Row make_row(const Objective& objective, std::uint64_t seed, std::size_t index) {
  Row row;
  std::vector<RowPlan> plans;
  objective.plan_period(seed, 11, plans);
  row.plan = plans.at(index);
  row.raw.resize(static_cast<std::size_t>(row.plan.tokens[0] + row.plan.tokens[1]));
  std::iota(row.raw.begin(), row.raw.end(), 1000);
  row.batch.resize(1, 2048);
  const DocumentSpan whole{0, 0, 0, 0, static_cast<std::int64_t>(row.raw.size()), false};
  objective.build_row(row.plan, row.raw, {whole}, seed, 100 + index, row.batch, 0);
  return row;
}

// What every row must satisfy: shifted inputs, id 0 at segment starts, padding empty, loss on one
// suffix of each segment.
void check_layout(const Batch& batch) {
  for (std::size_t t = 0; t < batch.inputs.size(); ++t) {
    const bool starts = t == 0 || batch.segment_ids[t] != batch.segment_ids[t - 1];
    if (batch.segment_ids[t] == 0) {
      REQUIRE(batch.inputs[t] == 0);
      REQUIRE(batch.targets[t] == 0);
      REQUIRE(batch.loss_weights[t] == 0.0f);
    } else {
      REQUIRE(batch.inputs[t] == (starts ? 0 : batch.targets[t - 1]));
      REQUIRE(batch.targets[t] > 0);
      if (!starts) REQUIRE(batch.loss_weights[t] >= batch.loss_weights[t - 1]);
    }
  }
}

std::vector<std::int32_t> part_of(const Batch& batch, std::int32_t segment, float weight) {
  std::vector<std::int32_t> ids;
  for (std::size_t t = 0; t < batch.targets.size(); ++t)
    if (batch.segment_ids[t] == segment && batch.loss_weights[t] == weight)
      ids.push_back(batch.targets[t]);
  return ids;
}

// Puts the targets' spans back into the inputs' sentinels.
std::vector<std::int32_t> rebuild(std::vector<std::int32_t> inputs,
                                  std::vector<std::int32_t> targets) {
  const std::int32_t lowest = tokenizer().sentinel(299);
  inputs.pop_back();
  targets.pop_back();
  std::vector<std::int32_t> out;
  for (const std::int32_t id : inputs) {
    if (id < lowest) {
      out.push_back(id);
      continue;
    }
    auto at = std::find(targets.begin(), targets.end(), id);
    REQUIRE(at != targets.end());
    for (++at; at != targets.end() && *at < lowest; ++at) out.push_back(*at);
  }
  return out;
}

TEST_CASE("objective: UL2 faithful has the paper's lengths, rates and layout") {
  const Objective objective(ObjectiveKind::ul2, Packing::faithful, 2048, tokenizer());
  const std::int64_t lengths[] = {1137, 1178, 1534, 1818, 2014, 1023};
  for (std::size_t d = 0; d < 6; ++d) CHECK(objective.denoisers()[d].row_tokens == lengths[d]);
  std::vector<RowPlan> plans;
  objective.plan_period(1, 2, plans);
  std::vector<int> counts(6, 0);
  std::int64_t offset = 0;
  for (const RowPlan& plan : plans) {
    CHECK(plan.offset == offset);
    offset += plan.tokens[0];
    ++counts.at(static_cast<std::size_t>(plan.denoisers[0]));
  }
  CHECK(offset == objective.tokens_per_period());
  CHECK(counts == std::vector<int>{16, 16, 16, 16, 16, 80});

  const std::vector<std::int32_t> tags[] = {
      tokenizer().encode("[NLU] "), tokenizer().encode("[NLG] "), tokenizer().encode("[S2S] ")};
  double real = 0.0;
  double loss = 0.0;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const Row row = make_row(objective, 4, i);
    check_layout(row.batch);
    const int d = row.plan.denoisers[0];
    const auto inputs = part_of(row.batch, 1, 0.0f);
    const auto targets = part_of(row.batch, 1, 1.0f);
    real += static_cast<double>(inputs.size() + targets.size());
    loss += static_cast<double>(targets.size());
    CHECK(inputs.back() == 1);
    CHECK(targets.back() == 1);
    const auto& tag = d < 2 ? tags[0] : d < 5 ? tags[1] : tags[2];
    CHECK(std::vector<std::int32_t>(
              inputs.begin(), inputs.begin() + static_cast<std::ptrdiff_t>(tag.size())) == tag);
    if (d == 5) {
      if (inputs.size() < 1024) CHECK(inputs.size() + targets.size() == 1023 + tag.size() + 2);
      CHECK(inputs.size() <= 1024);
      continue;
    }
    // The tag pushes the inputs over 1024; their end, with the last sentinel, is lost to the eos.
    CHECK(inputs.size() == 1024);
    const std::int64_t spans =
        num_noise_spans(lengths[d], objective.denoisers()[static_cast<std::size_t>(d)].density,
                        objective.denoisers()[static_cast<std::size_t>(d)].mean_span);
    const std::int32_t last = tokenizer().sentinel(spans - 1);
    CHECK(std::find(inputs.begin(), inputs.end(), last) == inputs.end());
    CHECK(std::find(targets.begin(), targets.end(), last) != targets.end());
    CHECK(targets.front() == tokenizer().sentinel(0));
    const auto expected = static_cast<std::size_t>(d == 0 ? 229 : d == 1 ? 200 : 1024);
    CHECK(targets.size() == expected);
  }
  CHECK(objective.mean_real_tokens() ==
        Approx(real / static_cast<double>(plans.size())).epsilon(1e-3));
  CHECK(objective.mean_loss_tokens() ==
        Approx(loss / static_cast<double>(plans.size())).epsilon(0.03));
  const double positions = static_cast<double>(plans.size()) * 2048.0;
  // What the released recipe's rows really held.
  CHECK(real / positions == Approx(0.67).margin(0.01));
  CHECK(loss / positions == Approx(0.296).margin(0.012));
}

TEST_CASE("objective: UL2 packed wastes under 3% of the positions and loses no token") {
  for (const std::int64_t length : {2048, 512, 128}) {
    const Objective objective(ObjectiveKind::ul2, Packing::packed, length, tokenizer());
    std::vector<RowPlan> plans;
    objective.plan_period(1, 2, plans);
    std::vector<int> counts(6, 0);
    std::int64_t empty = 0;
    for (std::size_t i = 0; i < plans.size(); ++i) {
      const RowPlan& plan = plans[i];
      std::vector<std::int32_t> raw(static_cast<std::size_t>(plan.tokens[0] + plan.tokens[1]));
      std::iota(raw.begin(), raw.end(), 1000);
      Batch batch;
      batch.resize(1, length);
      objective.build_row(plan, raw, {}, 9, i, batch, 0);
      check_layout(batch);
      empty += std::count(batch.segment_ids.begin(), batch.segment_ids.end(), 0);
      for (int part = 0; part < plan.num_parts; ++part) {
        const int d = plan.denoisers[part];
        ++counts[static_cast<std::size_t>(d)];
        const auto inputs = part_of(batch, part + 1, 0.0f);
        const auto targets = part_of(batch, part + 1, 1.0f);
        const auto tag = static_cast<std::ptrdiff_t>(
            objective.denoisers()[static_cast<std::size_t>(d)].mode_tag.size());
        std::vector<std::int32_t> text(inputs.begin() + tag, inputs.end());
        if (d == 5) {
          text.pop_back();
          text.insert(text.end(), targets.begin(), targets.end() - 1);
        } else {
          text = rebuild(text, targets);
        }
        const auto begin = raw.begin() + (part == 0 ? 0 : plan.tokens[0]);
        REQUIRE(text == std::vector<std::int32_t>(begin, begin + plan.tokens[part]));
      }
    }
    CHECK(counts == std::vector<int>{16, 16, 16, 16, 16, 80});
    CHECK(static_cast<double>(empty) <
          0.03 * static_cast<double>(static_cast<std::int64_t>(plans.size()) * length));
  }
}

TEST_CASE("objective: prefix LM splits anywhere, equally often") {
  const Objective objective(ObjectiveKind::prefix_lm, Packing::faithful, 2048, tokenizer());
  std::set<std::size_t> splits;
  double sum = 0.0;
  constexpr int kRows = 600;
  for (std::uint64_t seed = 0; seed < kRows; ++seed) {
    const Row row = make_row(objective, seed, 0);
    const auto inputs = part_of(row.batch, 1, 0.0f);
    REQUIRE(inputs.size() + part_of(row.batch, 1, 1.0f).size() == 1025);
    REQUIRE(inputs.size() >= 2);
    REQUIRE(inputs.size() <= 1023);
    splits.insert(inputs.size());
    sum += static_cast<double>(inputs.size() - 1);
  }
  CHECK(splits.size() > 400);
  CHECK(sum / kRows == Approx(511.5).margin(50.0));  // 4 standard errors
}

TEST_CASE("objective: span corruption alone has no mode tag and loses nothing") {
  const Objective objective(ObjectiveKind::span_corruption, Packing::faithful, 2048, tokenizer());
  const Row row = make_row(objective, 1, 0);
  check_layout(row.batch);
  const auto inputs = part_of(row.batch, 1, 0.0f);
  const auto targets = part_of(row.batch, 1, 1.0f);
  CHECK(inputs.size() == 1024);
  CHECK(targets.size() == 229);
  CHECK(rebuild(inputs, targets) == row.raw);
}

TEST_CASE("objective: causal LM, faithful and by documents") {
  std::vector<std::int32_t> ids = {10, 11, 1, 12, 13, 14, 1, 15};
  const std::vector<DocumentSpan> spans = {
      {0, 0, 0, 5, 3, true}, {0, 1, 0, 0, 4, true}, {0, 2, 0, 0, 1, false}};
  Batch batch;
  RowPlan plan;
  plan.num_parts = 1;
  plan.tokens[0] = 8;

  batch.resize(2, 8);
  Objective(ObjectiveKind::causal_lm, Packing::faithful, 8, tokenizer())
      .build_row(plan, ids, spans, 1, 1, batch, 1);
  const std::vector<std::int32_t> row(batch.targets.begin() + 8, batch.targets.end());
  CHECK(row == std::vector<std::int32_t>{10, 11, 1, 12, 13, 14, 1, 1});  // the last one becomes eos
  CHECK(std::vector<std::int32_t>(batch.inputs.begin() + 8, batch.inputs.end()) ==
        std::vector<std::int32_t>{0, 10, 11, 1, 12, 13, 14, 1});
  CHECK(std::count(batch.segment_ids.begin() + 8, batch.segment_ids.end(), 1) == 8);
  CHECK(std::count(batch.loss_weights.begin() + 8, batch.loss_weights.end(), 1.0f) == 8);

  batch.resize(1, 8);
  Objective(ObjectiveKind::causal_lm, Packing::packed, 8, tokenizer())
      .build_row(plan, ids, spans, 1, 1, batch, 0);
  CHECK(batch.targets == ids);
  CHECK(batch.inputs == std::vector<std::int32_t>{0, 10, 11, 0, 12, 13, 14, 0});
  CHECK(batch.segment_ids == std::vector<std::int32_t>{1, 1, 1, 2, 2, 2, 2, 3});
  CHECK(std::count(batch.loss_weights.begin(), batch.loss_weights.end(), 1.0f) == 8);
}

TEST_CASE("objective: too few sentinels and impossible lengths are user errors") {
  const Tokenizer small(sample("unigram-8000.model"), 100);
  CHECK_THROWS_AS(Objective(ObjectiveKind::ul2, Packing::faithful, 2048, small), UserError);
  CHECK_NOTHROW(Objective(ObjectiveKind::ul2, Packing::faithful, 512, small));
  CHECK_THROWS_AS(Objective(ObjectiveKind::ul2, Packing::faithful, 513, small), UserError);
  CHECK_THROWS_AS(Objective(ObjectiveKind::prefix_lm, Packing::packed, 32, small), UserError);
}

}  // namespace
}  // namespace openmoe
