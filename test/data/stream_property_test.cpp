// What holds for every seed, grid and order of reading.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "data/batch_stream.h"
#include "data/denoising.h"
#include "data/objective.h"
#include "data/tokenizer.h"
#include "test/data/data_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using test::mixture_of;
using test::phase;
using test::recipe_of;
using test::sample;
using test::SampleData;

constexpr std::int64_t kRows = 24;
constexpr std::int64_t kLength = 96;

// Two switches: of the objective at step 5, of mixture and objective, blended over 4 steps, at 11.
Recipe switching_recipe(std::uint64_t seed) {
  Recipe recipe = recipe_of(kLength, kRows,
                            {phase(ObjectiveKind::ul2, Packing::packed, 5),
                             phase(ObjectiveKind::causal_lm, Packing::packed, 11),
                             phase(ObjectiveKind::prefix_lm, Packing::packed)});
  recipe.data.phases[2].blend_steps = 4;
  recipe.run.seed = static_cast<std::int64_t>(seed);
  return recipe;
}

std::vector<Mixture> switching_mixtures() {
  const Mixture first = mixture_of({{"c4", 2}, {"github", 1}, {"stackexchange", 1}});
  return {first, first, mixture_of({{"github", 1}, {"stackexchange", 3}})};
}

BatchStream switching_stream(std::uint64_t seed) {
  return BatchStream(switching_recipe(seed), SampleData::get().folder(), switching_mixtures());
}

bool same_rows(const Batch& a, const Batch& b) {
  return a.inputs == b.inputs && a.targets == b.targets && a.loss_weights == b.loss_weights &&
         a.segment_ids == b.segment_ids && a.row_sources == b.row_sources;
}

void append(Batch& whole, const Batch& part) {
  const auto add = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  add(whole.inputs, part.inputs);
  add(whole.targets, part.targets);
  add(whole.loss_weights, part.loss_weights);
  add(whole.segment_ids, part.segment_ids);
  add(whole.row_sources, part.row_sources);
}

TEST_CASE("property: the rows of all ranks together are the batch of one rank, on any grid") {
  for (const std::uint64_t seed : {1ULL, 77ULL, 123456789ULL}) {
    BatchStream alone = switching_stream(seed);
    for (const std::int64_t num_ranks : {2, 3, 5, 7, 24}) {
      BatchStream shared = switching_stream(seed);
      const Rng rng(seed, stream_id("grid", static_cast<std::uint64_t>(num_ranks)));
      for (std::int64_t i = 0; i < 6; ++i) {
        const auto step =
            static_cast<std::int64_t>(rng.bits_at(static_cast<std::uint64_t>(i)) % 20);
        Batch whole;
        Batch joined;
        Batch part;
        alone.read(step, 0, kRows, whole);
        for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
          const std::int64_t begin = kRows * rank / num_ranks;
          const std::int64_t end = kRows * (rank + 1) / num_ranks;
          if ((rank + i) % 2 == 0) shared.prefetch(step, begin, end);
          shared.read(step, begin, end, part);
          append(joined, part);
        }
        INFO("seed " << seed << ", " << num_ranks << " ranks, step " << step);
        REQUIRE(same_rows(joined, whole));
      }
    }
  }
}

TEST_CASE("property: a jump to a step gives what a replay of all steps before it gives") {
  for (const std::uint64_t seed : {3ULL, 99ULL, 31337ULL}) {
    BatchStream replay = switching_stream(seed);
    Batch expected;
    Batch found;
    for (std::int64_t step = 0; step < 20; ++step) {
      replay.read(step, 0, kRows, expected);
      BatchStream fresh = switching_stream(seed);  // a resumed run
      fresh.read(step, 0, kRows, found);
      INFO("seed " << seed << ", step " << step);
      REQUIRE(same_rows(found, expected));
    }
    BatchStream far = switching_stream(seed);  // step 1,000,000, then back
    far.read(1000000, 0, 1, found);
    far.read(19, 0, kRows, found);
    REQUIRE(same_rows(found, expected));
  }
}

TEST_CASE("property: no token of a document comes twice within an epoch, for any seed") {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    BatchStream stream = switching_stream(seed);
    using Key = std::tuple<std::string, std::int64_t, std::int64_t>;  // source, epoch, document
    std::map<Key, std::vector<std::pair<std::int64_t, std::int64_t>>> taken;
    for (std::int64_t step = 0; step < 18; ++step)
      for (std::int64_t row = 0; row < kRows; ++row) {
        const RowOrigin origin = stream.origin(step, row);
        for (const RowOrigin::Document& document : origin.documents)
          taken[{origin.source, document.epoch, document.document}].push_back(
              {document.first_token, document.first_token + document.num_tokens});
      }
    for (auto& [key, parts] : taken) {
      std::sort(parts.begin(), parts.end());
      for (std::size_t i = 1; i < parts.size(); ++i) {
        INFO("seed " << seed << ", " << std::get<0>(key) << ", document " << std::get<2>(key));
        REQUIRE(parts[i].first >= parts[i - 1].second);
      }
    }
    REQUIRE(taken.size() > 50);
  }
}

TEST_CASE("property: masks of every denoiser keep their counts and borders, for any seed") {
  constexpr std::array<std::pair<double, double>, 4> kDenoisers = {
      {{0.15, 3.0}, {0.15, 8.0}, {0.5, 3.0}, {0.5, 64.0}}};
  const Rng sizes(5, stream_id("sizes"));
  std::vector<std::uint8_t> mask;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    const auto [density, mean_span] = kDenoisers[i % kDenoisers.size()];
    const auto length = static_cast<std::int64_t>(2 + sizes.bits_at(i) % 1200);
    Rng rng(i, stream_id("mask"));
    draw_noise_mask(length, density, mean_span, rng, mask);
    INFO("length " << length << ", density " << density << ", mean span " << mean_span);
    REQUIRE(static_cast<std::int64_t>(mask.size()) == length);
    REQUIRE(mask.front() == 0);
    REQUIRE(mask.back() == 1);
    REQUIRE(std::count(mask.begin(), mask.end(), 1) == num_noise_tokens(length, density));
    std::int64_t spans = 0;
    for (std::size_t t = 1; t < mask.size(); ++t) spans += mask[t] == 1 && mask[t - 1] == 0;
    REQUIRE(spans == num_noise_spans(length, density, mean_span));
  }
}

TEST_CASE("property: sources and denoisers come at their rates, for any seed") {
  const Tokenizer tokenizer(sample("unigram-8000.model"));
  const Objective ul2(ObjectiveKind::ul2, Packing::faithful, 512, tokenizer);
  constexpr std::int64_t kPeriods = 8;
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    std::vector<double> counts(ul2.denoisers().size(), 0.0);
    std::vector<RowPlan> rows;
    double examples = 0.0;
    for (std::int64_t period = 0; period < kPeriods; ++period) {
      ul2.plan_period(seed, stream_id("plan", static_cast<std::uint64_t>(period)), rows);
      for (const RowPlan& row : rows)
        for (int part = 0; part < row.num_parts; ++part, ++examples)
          ++counts[static_cast<std::size_t>(row.denoisers[part])];
    }
    double rates = 0.0;
    for (std::size_t d = 0; d < counts.size(); ++d) {
      const double rate = ul2.denoisers()[d].rate;
      rates += rate;
      INFO("seed " << seed << ", denoiser " << ul2.denoisers()[d].name);
      CHECK(std::abs(counts[d] - rate * examples) <= 1e-9 * examples + 1.0);
    }
    CHECK(rates == Approx(1.0));

    // Any window of rows: within four standard deviations of independent draws.
    BatchStream stream = switching_stream(seed);
    std::map<std::string, double> by_source;
    Batch batch;
    for (std::int64_t step = 0; step < 11; ++step) {
      stream.read(step, 0, kRows, batch);
      for (const std::int32_t source : batch.row_sources)
        ++by_source[stream.source_names()[static_cast<std::size_t>(source)]];
    }
    constexpr double kTotal = 11.0 * kRows;
    for (const auto& [name, share] :
         {std::pair{"c4", 0.5}, std::pair{"github", 0.25}, std::pair{"stackexchange", 0.25}})
      CHECK(std::abs(by_source[name] - share * kTotal) <=
            4.0 * std::sqrt(kTotal * share * (1.0 - share)));
  }
}

TEST_CASE("property: a document longer than every row and every shard is cut, never lost") {
  const test::Scratch scratch;
  std::string text = "begin";
  for (int i = 0; i < 30000; ++i) text += " word" + std::to_string(i % 997);
  const std::string input = scratch.write("one.jsonl", "{\"text\": \"" + text + "\"}\n");
  PrepareOptions options = test::prepare_options(scratch.path("data"), {{"", input}});
  options.validation_fraction = 0.0;
  options.shard_tokens = 100;  // less than the document
  prepare(options, {});
  const Tokenizer tokenizer(sample("unigram-8000.model"));
  const std::vector<std::int32_t> all = tokenizer.encode(text);
  const Recipe recipe = recipe_of(kLength, 8, {phase(ObjectiveKind::causal_lm, Packing::packed)});
  BatchStream stream(recipe, scratch.path("data"), {mixture_of({{"one", 1}})});
  std::vector<std::int32_t> found;
  Batch batch;
  for (std::int64_t step = 0; found.size() < all.size(); ++step) {
    stream.read(step, 0, 8, batch);
    found.insert(found.end(), batch.targets.begin(), batch.targets.end());
  }
  found.resize(all.size());
  CHECK(found == all);
}

}  // namespace
}  // namespace openmoe
