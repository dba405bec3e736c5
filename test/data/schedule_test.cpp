// Phases that blend, that mix in a source at their start, that end in tokens, and that fine-tune on
// conversations.
#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.h"
#include "data/batch_stream.h"
#include "data/chat.h"
#include "data/chat_stream.h"
#include "data/token_budget.h"
#include "data/tokenizer.h"
#include "test/data/data_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using test::mixture_of;
using test::phase;
using test::prepare_options;
using test::recipe_of;
using test::sample;
using test::SampleData;
using test::Scratch;

std::map<std::string, int> sources_of(BatchStream& stream, std::int64_t begin, std::int64_t end) {
  std::map<std::string, int> counts;
  Batch batch;
  for (std::int64_t step = begin; step < end; ++step) {
    stream.read(step, 0, stream.recipe().data.batch_rows, batch);
    for (const std::int32_t source : batch.row_sources)
      ++counts[stream.source_names()[static_cast<std::size_t>(source)]];
  }
  return counts;
}

TEST_CASE("schedule: a blend moves from one mixture to the next and both ends are exact") {
  Recipe recipe = recipe_of(64, 32,
                            {phase(ObjectiveKind::causal_lm, Packing::packed, 8),
                             phase(ObjectiveKind::causal_lm, Packing::packed)});
  recipe.data.phases[1].blend_steps = 16;
  const std::vector<Mixture> mixtures = {mixture_of({{"c4", 3}, {"github", 1}}),
                                         mixture_of({{"github", 1}, {"stackexchange", 1}})};
  BatchStream stream(recipe, SampleData::get().folder(), mixtures);
  CHECK(sources_of(stream, 0, 8) == std::map<std::string, int>{{"c4", 192}, {"github", 64}});
  std::map<std::string, int> blend = sources_of(stream, 8, 24);  // half of each mixture, 512 rows
  CHECK(std::abs(blend["c4"] - 192) <= 1);
  CHECK(std::abs(blend["github"] - 192) <= 1);
  CHECK(std::abs(blend["stackexchange"] - 128) <= 1);
  std::map<std::string, int> early = sources_of(stream, 8, 12);
  CHECK(early["c4"] > 5 * early["stackexchange"]);
  CHECK(sources_of(stream, 24, 32) ==
        std::map<std::string, int>{{"github", 128}, {"stackexchange", 128}});
}

TEST_CASE("schedule: an extra source has its share at the start of a phase only") {
  Recipe recipe = recipe_of(64, 32, {phase(ObjectiveKind::ul2, Packing::packed)});
  recipe.data.phases[0].extra_source = "stackexchange";
  recipe.data.phases[0].extra_share = 0.25;
  recipe.data.phases[0].extra_steps = 8;
  BatchStream stream(recipe, SampleData::get().folder(), {mixture_of({{"c4", 1}, {"github", 1}})});
  CHECK(sources_of(stream, 0, 8) ==
        std::map<std::string, int>{{"c4", 96}, {"github", 96}, {"stackexchange", 64}});
  CHECK(sources_of(stream, 8, 16) == std::map<std::string, int>{{"c4", 128}, {"github", 128}});
}

TEST_CASE("schedule: no document comes twice in an epoch across blends, switches and objectives") {
  Recipe recipe = recipe_of(64, 8,
                            {phase(ObjectiveKind::ul2, Packing::packed, 7),
                             phase(ObjectiveKind::causal_lm, Packing::packed, 23),
                             phase(ObjectiveKind::span_corruption, Packing::faithful)});
  recipe.data.phases[0].extra_source = "stackexchange";
  recipe.data.phases[0].extra_share = 0.5;
  recipe.data.phases[0].extra_steps = 3;
  recipe.data.phases[1].blend_steps = 5;
  const std::vector<Mixture> mixtures = {mixture_of({{"github", 1}}),
                                         mixture_of({{"stackexchange", 1}, {"c4", 1}}),
                                         mixture_of({{"stackexchange", 1}})};
  BatchStream stream(recipe, SampleData::get().folder(), mixtures);
  // (source, epoch, document) -> tokens given; a stretch may stop inside a document, which then
  // does not come back.
  std::map<std::tuple<std::string, std::int64_t, std::int64_t>, std::int64_t> next;
  for (std::int64_t step = 0; step < 30; ++step)
    for (std::int64_t row = 0; row < 8; ++row) {
      const RowOrigin origin = stream.origin(step, row);
      for (const RowOrigin::Document& document : origin.documents) {
        const auto key = std::tuple{origin.source, document.epoch, document.document};
        if (next.contains(key))
          REQUIRE(document.first_token == next[key]);  // goes on where it stopped
        else
          REQUIRE(document.first_token == 0);
        next[key] = document.first_token + document.num_tokens;
      }
    }
  const std::vector<SourceProgress> progress = stream.progress(30);
  std::int64_t rows = 0;
  for (const SourceProgress& entry : progress) rows += entry.rows;
  CHECK(rows == 30 * 8);
}

TEST_CASE("schedule: phases end at the step that reaches a number of real or loss tokens") {
  const Tokenizer tokenizer(sample("unigram-8000.model"));
  Recipe recipe = recipe_of(512, 16,
                            {phase(ObjectiveKind::ul2, Packing::faithful),
                             phase(ObjectiveKind::causal_lm, Packing::packed),
                             phase(ObjectiveKind::causal_lm, Packing::packed)});
  recipe.data.phases[0].until_loss_tokens = 500000;
  recipe.data.phases[1].until_real_tokens = 2500000;
  Recipe resolved = recipe;
  resolve_token_budgets(resolved, tokenizer, {});
  const std::int64_t first = resolved.data.phases[0].until_step;
  const std::int64_t second = resolved.data.phases[1].until_step;
  CHECK(resolved.data.phases[0].until_loss_tokens == 0);
  BatchStream stream(recipe, SampleData::get().folder(),
                     {mixture_of({{"c4", 1}}), mixture_of({{"c4", 1}}), mixture_of({{"c4", 1}})});
  CHECK(stream.phase_begin(1) == first);
  CHECK(stream.phase_of(first - 1) == 0);
  CHECK(stream.phase_of(first) == 1);
  Batch batch;
  double loss = 0.0;
  double real = 0.0;
  for (std::int64_t step = 0; step < first; ++step) {
    stream.read(step, 0, 16, batch);
    for (const float weight : batch.loss_weights) loss += weight;
    for (const std::int32_t segment : batch.segment_ids) real += segment > 0 ? 1.0 : 0.0;
  }
  CHECK(loss == Approx(500000.0).epsilon(0.02));
  CHECK(real + static_cast<double>((second - first) * 16 * 512) == Approx(2500000.0).epsilon(0.01));
  recipe.data.phases[1].until_real_tokens = 1000;
  CHECK_THROWS_AS(resolve_token_budgets(recipe, tokenizer, {}), UserError);
}

TEST_CASE("schedule: fine-tuning ends at a number of loss or real tokens too") {
  const Scratch scratch;
  PrepareOptions options =
      prepare_options(scratch.path("data"), {{"chat", sample("conversations.jsonl")}});
  options.chat = true;
  options.validation_fraction = 0.05;
  prepare(options, {});
  for (const bool by_loss : {true, false}) {
    Recipe recipe = recipe_of(
        1024, 4,
        {phase(ObjectiveKind::sft, Packing::packed), phase(ObjectiveKind::sft, Packing::packed)});
    constexpr std::int64_t kBudget = 60000;
    (by_loss ? recipe.data.phases[0].until_loss_tokens : recipe.data.phases[0].until_real_tokens) =
        kBudget;
    BatchStream stream(recipe, scratch.path("data"),
                       {mixture_of({{"chat", 1}}), mixture_of({{"chat", 1}})});
    const std::int64_t end = stream.phase_begin(1);
    REQUIRE(end > 5);
    double count = 0.0;
    Batch batch;
    for (std::int64_t step = 0; step < end; ++step) {
      stream.read(step, 0, 4, batch);
      for (const float weight : batch.loss_weights) count += by_loss && weight > 0.0f;
      for (const std::int32_t segment : batch.segment_ids) count += !by_loss && segment > 0;
    }
    CHECK(count == Approx(kBudget).epsilon(0.1));
  }
}

TEST_CASE("chat: the template of OpenMoE-8B-Chat, and conversations that are none") {
  const std::vector<std::string> parts = chat_parts({{"system", "Be brief."},
                                                     {"user", "Hi"},
                                                     {"assistant", "Hello"},
                                                     {"user", "Bye"},
                                                     {"assistant", "See you"},
                                                     {"user", "?"}});
  CHECK(parts == std::vector<std::string>{"<<SYS>>\nBe brief.\n<</SYS>>\n\n<s>[INST] Hi [/INST]",
                                          "Hello </s>", "<s>[INST] Bye [/INST]", "See you </s>"});
  CHECK(chat_parts({{"assistant", "Hello"}}).empty());
  CHECK(chat_parts({{"user", "a"}, {"user", "b"}}).empty());
  CHECK(chat_parts({}).empty());
  RawRecord record;
  Document document;
  std::vector<std::string> found;
  std::int64_t at = 0;
  record.bytes = R"({"input": "2+2?", "output": "4"})";
  CHECK(parse_chat(record, document, found, at).empty());
  CHECK(document.text == "<s>[INST] 2+2? [/INST] 4 </s>");
  for (const char* bad : {"{", "[]", R"({"text": "x"})", R"({"conversation": 3})",
                          R"({"messages": [{"role": "user"}]})",
                          R"({"messages": [{"role": "assistant", "content": "x"}]})"}) {
    record.bytes = bad;
    CHECK_FALSE(parse_chat(record, document, found, at).empty());
  }
}

TEST_CASE("chat: rows hold whole conversations, loss falls on replies, epochs give each once") {
  const Scratch scratch;
  PrepareOptions options =
      prepare_options(scratch.path("data"), {{"chat", sample("conversations.jsonl")}});
  options.chat = true;
  prepare(options, {});
  const Tokenizer tokenizer(sample("unigram-8000.model"));
  const Recipe recipe = recipe_of(1024, 4, {phase(ObjectiveKind::sft, Packing::packed)});
  BatchStream stream(recipe, scratch.path("data"), {mixture_of({{"chat", 1}})});
  std::set<std::pair<std::int64_t, std::int64_t>> seen;
  std::int64_t padding = 0;
  Batch batch;
  constexpr std::int64_t kSteps = 6;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    stream.read(step, 0, 4, batch);
    padding += std::count(batch.segment_ids.begin(), batch.segment_ids.end(), 0);
    for (std::int64_t row = 0; row < 4; ++row) {
      for (const RowOrigin::Document& document : stream.origin(step, row).documents) {
        REQUIRE(document.first_token == 0);
        REQUIRE(seen.insert({document.epoch, document.document}).second);
      }
      std::vector<std::int32_t> replies;
      for (std::int64_t t = 0; t < 1024; ++t) {
        const auto i = static_cast<std::size_t>(row * 1024 + t);
        const bool starts = t == 0 || batch.segment_ids[i] != batch.segment_ids[i - 1];
        REQUIRE(batch.inputs[i] ==
                (starts || batch.segment_ids[i] == 0 ? 0 : batch.targets[i - 1]));
        if (batch.loss_weights[i] > 0.0f) replies.push_back(batch.targets[i]);
      }
      const std::string text = tokenizer.decode(replies);
      CHECK(text.find("[INST]") == std::string::npos);
      CHECK_FALSE(text.empty());
    }
  }
  CHECK(padding < kSteps * 4 * 1024 / 4);
  // A source of plain text has no replies to learn.
  const auto open_plain = [&] {
    BatchStream(recipe, SampleData::get().folder(), {mixture_of({{"c4", 1}})});
  };
  CHECK_THROWS_AS(open_plain(), UserError);
}

TEST_CASE("mixture: what is wrong is said with its place, all at once") {
  const auto message = [](const std::string& text) -> std::string {
    try {
      parse_mixture(text, "m.json");
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(
      message(
          R"({"name": "m", "weight_sum": 3, "sources": [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]})")
          .empty());
  CHECK(
      message(
          R"({"name": "m", "weight_sum": 4, "sources": [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]})")
          .find("add up to 3") != std::string::npos);
  const std::string many = message(
      R"({"name": "", "unit": "kilos", "colour": 1, "weight_sum": -1, "sources": [{"name": "a", "weight": 0}, {"name": "a", "weight": "x"}, {"name": "../b", "weight": 1}, 7]})");
  for (const char* part : {"name", "\"kilos\"", "colour", "weight_sum", "sources[0].weight",
                           "sources[1].name", "named twice", "sources[2].name", "sources[3]"})
    CHECK(many.find(part) != std::string::npos);
  CHECK_FALSE(message("{").empty());
  CHECK_FALSE(message(R"({"name": "m", "weight_sum": 1, "sources": []})").empty());
  for (const char* name : {"openmoe-v1", "openmoe-v2", "openmoe-v3", "quickstart"})
    CHECK(load_mixture(test::source_dir() + "/recipes/mixtures/" + name + ".json").name == name);
}

}  // namespace
}  // namespace openmoe
