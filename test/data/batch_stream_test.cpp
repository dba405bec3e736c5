#include "data/batch_stream.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.h"
#include "data/document_stream.h"
#include "test/data/data_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using test::mixture_of;
using test::phase;
using test::recipe_of;
using test::SampleData;
using test::Scratch;

bool same_rows(const Batch& a, const Batch& b) {
  return a.inputs == b.inputs && a.targets == b.targets && a.loss_weights == b.loss_weights &&
         a.segment_ids == b.segment_ids && a.row_sources == b.row_sources;
}

const std::vector<std::pair<std::string, double>> kWeights = {
    {"c4", 2}, {"github", 1}, {"stackexchange", 1}};

TEST_CASE("stream: a step is the same whole, in parts, prefetched, and after a jump") {
  for (const Packing packing : {Packing::faithful, Packing::packed}) {
    const Recipe recipe = recipe_of(
        256, 12,
        {phase(ObjectiveKind::ul2, packing, 20), phase(ObjectiveKind::causal_lm, packing, 40),
         phase(ObjectiveKind::ul2, packing)});
    const std::vector<Mixture> mixtures = {mixture_of(kWeights), mixture_of({{"github", 1}}),
                                           mixture_of(kWeights)};
    BatchStream straight(recipe, SampleData::get().folder(), mixtures);
    std::vector<Batch> steps(50);
    for (std::size_t s = 0; s < steps.size(); ++s)
      straight.read(static_cast<std::int64_t>(s), 0, 12, steps[s]);
    for (const std::int64_t step : {49, 40, 39, 21, 20, 19, 0}) {
      BatchStream jumped(recipe, SampleData::get().folder(), mixtures);
      const Batch& whole = steps[static_cast<std::size_t>(step)];
      for (const std::int64_t rows : {12, 6, 4, 3, 1}) {
        Batch joined;
        joined.resize(0, 256);
        for (std::int64_t begin = 0; begin < 12; begin += rows) {
          Batch part;
          if (rows == 4) jumped.prefetch(step, begin, begin + rows);
          jumped.read(step, begin, begin + rows, part);
          const auto append = [](auto& to, const auto& from) {
            to.insert(to.end(), from.begin(), from.end());
          };
          append(joined.inputs, part.inputs);
          append(joined.targets, part.targets);
          append(joined.loss_weights, part.loss_weights);
          append(joined.segment_ids, part.segment_ids);
          append(joined.row_sources, part.row_sources);
        }
        REQUIRE(same_rows(joined, whole));
      }
    }
  }
}

TEST_CASE("stream: another seed gives other rows, the same held-out rows") {
  Recipe recipe = recipe_of(128, 8, {phase(ObjectiveKind::ul2, Packing::packed)});
  BatchStream first(recipe, SampleData::get().folder(), {mixture_of(kWeights)});
  recipe.run.seed = 2;
  BatchStream second(recipe, SampleData::get().folder(), {mixture_of(kWeights)});
  Batch a;
  Batch b;
  first.read(0, 0, 8, a);
  second.read(0, 0, 8, b);
  CHECK_FALSE(same_rows(a, b));
  REQUIRE(first.validation_sources(0) == std::vector<std::string>{"c4", "github", "stackexchange"});
  first.read_validation(0, "github", 0, 4, a);
  second.read_validation(5, "github", 0, 4, b);
  CHECK(same_rows(a, b));
  CHECK(first.fingerprint() == second.fingerprint());
}

TEST_CASE("stream: sources come at the mixture's rates") {
  const Recipe recipe = recipe_of(64, 64, {phase(ObjectiveKind::causal_lm, Packing::packed)});
  BatchStream stream(recipe, SampleData::get().folder(), {mixture_of(kWeights)});
  std::map<std::int32_t, int> counts;
  Batch batch;
  for (std::int64_t step = 0; step < 8; ++step) {
    stream.read(step, 0, 64, batch);
    for (const std::int32_t source : batch.row_sources) ++counts[source];
  }
  CHECK(counts == std::map<std::int32_t, int>{{0, 256}, {1, 128}, {2, 128}});
}

// Causal rows without masks show the stream itself; joining a source's rows in order gives its
// documents.
TEST_CASE("stream: an epoch gives every training token once, in another order each time") {
  const std::int64_t length = 64;
  SourceReader reader(SampleData::get().folder(), "stackexchange", Split::train);
  DocumentStream stream(reader, 1, {true, false});
  std::vector<std::vector<std::int64_t>> orders;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::int32_t> ids;
    std::vector<DocumentSpan> spans;
    for (std::int64_t x = stream.epoch_begin(epoch); x < stream.epoch_begin(epoch + 1); x += length)
      stream.read(x, std::min(length, stream.epoch_begin(epoch + 1) - x), ids, &spans);
    std::map<std::int64_t, std::int64_t> tokens;
    std::vector<std::int64_t> order;
    for (const DocumentSpan& span : spans) {
      REQUIRE(span.epoch == epoch);
      REQUIRE(span.first_token == tokens[span.document]);
      if (span.first_token == 0) order.push_back(span.document);
      tokens[span.document] += span.count;
    }
    REQUIRE(static_cast<std::int64_t>(tokens.size()) == reader.num_documents());
    std::int64_t sum = 0;
    for (const auto& [document, count] : tokens) {
      std::int64_t offsets[2];
      reader.shard(0).read_offsets(document, 1, offsets);
      REQUIRE(count == offsets[1] - offsets[0] + 1);  // with its eos
      sum += count;
    }
    REQUIRE(sum == static_cast<std::int64_t>(ids.size()));
    orders.push_back(order);
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
}

TEST_CASE("stream: units of several documents change the order, not the content") {
  SourceReader reader(SampleData::get().folder(), "stackexchange", Split::train, nullptr, 16);
  CHECK(reader.num_units() <= 16);
  CHECK(reader.num_units() >= 8);
  DocumentStream stream(reader, 1, {false, false});
  CHECK(stream.epoch_tokens(0) == reader.num_tokens());
  std::vector<std::int32_t> whole;
  std::vector<DocumentSpan> spans;
  stream.read(stream.epoch_begin(1), reader.num_tokens(), whole, &spans);
  std::set<std::int64_t> documents;
  for (const DocumentSpan& span : spans) documents.insert(span.document);
  CHECK(static_cast<std::int64_t>(spans.size()) == reader.num_documents());
  CHECK(static_cast<std::int64_t>(documents.size()) == reader.num_documents());
  for (const std::int64_t begin : {0, 1, 777, 5000}) {
    std::vector<std::int32_t> part;
    stream.read(stream.epoch_begin(1) + begin, 300, part, nullptr);
    CHECK(std::equal(part.begin(), part.end(), whole.begin() + begin));
  }
  for (const std::int64_t offset : {0, 1, 5000, 12345}) {
    const std::int64_t at = stream.offset_of(stream.place_at_or_after(offset));
    CHECK(at >= offset);
    CHECK(at - offset < reader.num_tokens());
  }
}

TEST_CASE(
    "stream: a document longer than 65536 tokens gives one piece of it per epoch when faithful") {
  const Scratch scratch;
  std::string text;
  for (int i = 0; i < 120000; ++i) text += static_cast<char>('a' + i * 7 % 26);
  const std::string input =
      scratch.write("long.jsonl", "{\"text\": \"short\"}\n{\"text\": \"" + text + "\"}\n");
  PrepareOptions options = test::prepare_options(scratch.path("data"), {{"", input}});
  options.validation_fraction = 0.0;
  prepare(options, {});
  SourceReader reader(scratch.path("data"), "long", Split::train);
  REQUIRE(reader.long_documents().size() == 1);
  const std::int64_t tokens = reader.long_documents()[0].tokens;
  REQUIRE(tokens > 65536);
  REQUIRE(tokens <= 2 * 65536);
  DocumentStream whole(reader, 1, {false, false});
  DocumentStream pieces(reader, 1, {false, true});
  CHECK(whole.epoch_tokens(3) == reader.num_tokens());
  std::set<std::int64_t> lengths;
  for (std::int64_t epoch = 0; epoch < 20; ++epoch) {
    const std::int64_t length = pieces.epoch_tokens(epoch);
    CHECK(pieces.epoch_of(pieces.epoch_begin(epoch)) == epoch);
    CHECK(pieces.epoch_of(pieces.epoch_begin(epoch) + length - 1) == epoch);
    lengths.insert(length - (reader.num_tokens() - tokens));
    std::vector<std::int32_t> ids;
    std::vector<DocumentSpan> spans;
    pieces.read(pieces.epoch_begin(epoch), length, ids, &spans);
    CHECK(spans.size() == 2);
  }
  CHECK(lengths == std::set<std::int64_t>{65536, tokens - 65536});
}

TEST_CASE("stream: the next phase goes on with documents that this epoch has not given") {
  const Recipe recipe = recipe_of(64, 4,
                                  {phase(ObjectiveKind::ul2, Packing::packed, 10),
                                   phase(ObjectiveKind::causal_lm, Packing::packed)});
  BatchStream stream(recipe, SampleData::get().folder(),
                     {mixture_of({{"stackexchange", 1}}), mixture_of({{"stackexchange", 1}})});
  std::set<std::int64_t> before;
  std::set<std::int64_t> after;
  for (std::int64_t step = 0; step < 20; ++step)
    for (std::int64_t row = 0; row < 4; ++row)
      for (const RowOrigin::Document& document : stream.origin(step, row).documents) {
        REQUIRE(document.epoch == 0);
        (step < 10 ? before : after).insert(document.document);
      }
  std::vector<std::int64_t> both;
  std::set_intersection(before.begin(), before.end(), after.begin(), after.end(),
                        std::back_inserter(both));
  CHECK(both.empty());
  const std::vector<SourceProgress> progress = stream.progress(20);
  REQUIRE(progress.size() == 1);
  CHECK(progress[0].rows == 80);
  CHECK(progress[0].epochs > 0.05);
  CHECK(progress[0].epochs < 1.0);
}

TEST_CASE("stream: what is wrong with the data is said before the first step") {
  const std::string folder = SampleData::get().folder();
  const Recipe recipe = recipe_of(128, 8, {phase(ObjectiveKind::ul2, Packing::packed)});
  const auto message = [&](const Recipe& with, const std::string& where,
                           const Mixture& mixture) -> std::string {
    try {
      const BatchStream stream(with, where, {mixture});
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message(recipe, folder, mixture_of({{"absent", 1}})).find("absent") != std::string::npos);
  CHECK(message(recipe, folder + "/nowhere", mixture_of(kWeights)).find("no such data folder") !=
        std::string::npos);
  Recipe small = recipe;
  small.model.vocab_size = 8000;
  CHECK(message(small, folder, mixture_of(kWeights)).find("model.vocab_size is 8000") !=
        std::string::npos);

  const Scratch scratch;
  std::filesystem::copy(folder, scratch.path("copy"), std::filesystem::copy_options::recursive);
  const std::string shard = scratch.path("copy/c4/c4-00000.h5");
  const std::string bytes = Scratch::read(shard);
  scratch.write("copy/c4/c4-00000.h5", bytes.substr(0, bytes.size() / 2));
  CHECK(message(recipe, scratch.path("copy"), mixture_of(kWeights)).find("c4-00000.h5") !=
        std::string::npos);
  std::filesystem::remove(shard);
  CHECK(message(recipe, scratch.path("copy"), mixture_of(kWeights)).find("no shards") !=
        std::string::npos);
}

TEST_CASE("stream: a flipped bit in a shard is found when its block is read") {
  const Scratch scratch;
  std::filesystem::copy(SampleData::get().folder(), scratch.path("copy"),
                        std::filesystem::copy_options::recursive);
  const std::string shard = scratch.path("copy/c4/c4-00000.h5");
  std::string bytes = Scratch::read(shard);
  std::vector<std::int32_t> ids;
  ShardReader intact(shard, Split::train);
  intact.read_tokens(0, 32, ids);
  std::string needle;
  for (const std::int32_t id : ids) {
    needle += static_cast<char>(id & 255);
    needle += static_cast<char>(id >> 8);
  }
  const std::size_t at = bytes.find(needle);
  REQUIRE(at != std::string::npos);
  bytes[at + 5] ^= 4;
  scratch.write("copy/c4/c4-00000.h5", bytes);
  const Recipe recipe = recipe_of(128, 8, {phase(ObjectiveKind::causal_lm, Packing::packed)});
  BatchStream stream(recipe, scratch.path("copy"), {mixture_of({{"c4", 1}})});
  Batch batch;
  const auto read_some = [&] {
    for (std::int64_t step = 0; step < 200; ++step) stream.read(step, 0, 8, batch);
  };
  CHECK_THROWS_AS(read_some(), RuntimeFault);
  ShardReader damaged(shard, Split::train);
  const std::vector<std::string> problems = damaged.verify();
  REQUIRE(problems.size() == 1);
  CHECK(problems[0].find("block 0") != std::string::npos);
}

}  // namespace
}  // namespace openmoe
