// Bad inputs and damaged files: each is named with its place, at the latest when it is used.
#include <filesystem>
#include <fstream>

#include "core/base/error.h"
#include "data/audit.h"
#include "data/batch_stream.h"
#include "data/document_stream.h"
#include "data/shard.h"
#include "data/tokenizer.h"
#include "test/data/data_support.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;
using test::contains;
using test::message_of;
using test::mixture_of;
using test::phase;
using test::prepare_options;
using test::recipe_of;
using test::sample;
using test::SampleData;
using test::Scratch;

bool says(const std::string& message, const std::string& part) {
  INFO("message: " << message);
  const bool found = contains(message, part);
  CHECK(found);
  return found;
}

std::string copy_of_sample(const Scratch& scratch) {
  fs::copy(SampleData::get().folder(), scratch.path("copy"), fs::copy_options::recursive);
  return scratch.path("copy");
}

const Recipe& causal_recipe() {
  static const Recipe recipe =
      recipe_of(128, 8, {phase(ObjectiveKind::causal_lm, Packing::packed)});
  return recipe;
}

struct BadLine {
  const char* what;
  std::string line;
  std::int64_t byte;  // of the fault within the line
  const char* reason;
};

TEST_CASE("fault: every kind of bad line is named by file, line and byte offset") {
  const std::string good = "{\"text\": \"good\"}\n";
  const std::vector<BadLine> kinds = {
      {"invalid UTF-8", "{\"text\": \"ab\xc3(\"}", 12, "malformed JSON"},
      {"surrogate", "{\"text\": \"\xed\xa0\x80\"}", 11, "malformed JSON"},
      {"10 MB line", "{\"text\": \"" + std::string(10 << 20, 'x') + "\"}", 0,
       "more than the limit"},
      {"NUL byte", std::string("{\"text\": \"a\0b\"}", 15), 11, "malformed JSON"},
      {"escaped NUL", "{\"text\": \"a\\u0000b\"}", 0, "NUL character"},
      {"cut off", "{\"text\": \"abc", 13, "malformed JSON"},
      {"not an object", "[1, 2]", 0, "not a JSON object"},
      {"no text", "{\"title\": \"x\"}", 0, "none of the fields"},
      {"text of another type", "{\"text\": 5}", 0, "is not a string"},
      {"two values", "{\"text\": \"a\"} {}", 14, "malformed JSON"},
      {"empty line", "", 0, "malformed JSON"},
  };
  for (const BadLine& kind : kinds) {
    INFO(kind.what);
    const Scratch scratch;
    const std::string path = scratch.write("in.jsonl", good + kind.line + "\n" + good);
    PrepareOptions options = prepare_options(scratch.path("out"), {{"", path}});
    const std::string message = message_of<UserError>([&] { prepare(options, {}); });
    says(message, path + ": line 2, byte offset ");
    says(message, kind.reason);
    const auto stated = std::stoll(message.substr(message.find("byte offset ") + 12));
    const auto expected = static_cast<long long>(good.size()) + kind.byte;
    CHECK(std::abs(stated - expected) <= 1);  // the parser stops at the byte or after it
    CHECK(list_shards(scratch.path("out/in")).empty());

    options.skip_bad_records = true;
    const PrepareReport report = prepare(options, {});
    CHECK(report.sources[0].counts.skipped_records == 1);
    CHECK(report.sources[0].counts.documents[0] + report.sources[0].counts.documents[1] == 2);
    REQUIRE(report.skipped.size() == 1);
    says(report.skipped[0], path + ": line 2");
  }
}

TEST_CASE("fault: a long line is accepted where the limit allows it") {
  const Scratch scratch;
  std::string text;
  while (text.size() < (10u << 20)) text += "the quick brown fox " + std::to_string(text.size());
  const std::string path = scratch.write("in.jsonl", "{\"text\": \"" + text + "\"}\n");
  PrepareOptions options = prepare_options(scratch.path("out"), {{"", path}});
  options.max_record_bytes = 16 << 20;
  options.validation_fraction = 0.0;
  const PrepareReport report = prepare(options, {});
  CHECK(report.sources[0].counts.text_bytes == static_cast<std::int64_t>(text.size()));
  ShardReader reader(scratch.path("out/in/in-00000.h5"), Split::train);
  CHECK(reader.verify().empty());
  std::vector<std::int32_t> ids;
  reader.read_tokens(0, reader.num_tokens(), ids);
  CHECK(Tokenizer(sample("unigram-8000.model")).decode(ids) == text);
}

TEST_CASE("fault: a shard that shrinks or goes while it is in use") {
  const Scratch scratch;
  const std::string data = copy_of_sample(scratch);
  const std::string shard = data + "/c4/c4-00000.h5";
  BatchStream stream(causal_recipe(), data, {mixture_of({{"c4", 1}})});
  const auto read_all = [&] {
    Batch batch;
    for (std::int64_t step = 0; step < 300; ++step) stream.read(step, 0, 8, batch);
  };
  SECTION("removed while open: what is open stays readable") {
    fs::remove(shard);
    read_all();
  }
  SECTION("truncated while open") {
    Batch batch;
    stream.read(0, 0, 8, batch);
    fs::resize_file(shard, 4096);
    const std::string message = message_of<RuntimeFault>(read_all);
    says(message, shard);
    says(message, "truncated while in use");
  }
}

TEST_CASE("fault: a flipped bit is named by file, block and byte, by the stream and by the audit") {
  const Scratch scratch;
  const std::string data = copy_of_sample(scratch);
  const std::string shard = data + "/github/github-00000.h5";
  std::vector<std::int32_t> ids;
  ShardReader(shard, Split::train).read_tokens(40, 72, ids);
  std::string needle;
  for (const std::int32_t id : ids)
    needle += {static_cast<char>(id & 255), static_cast<char>(id >> 8)};
  std::string bytes = Scratch::read(shard);
  const std::size_t at = bytes.find(needle);
  REQUIRE(at != std::string::npos);
  bytes[at] ^= 1;
  scratch.write("copy/github/github-00000.h5", bytes);
  const std::string block_byte = "file byte " + std::to_string(at - 80);
  BatchStream stream(causal_recipe(), data, {mixture_of({{"github", 1}})});
  const std::string message = message_of<RuntimeFault>([&] {
    Batch batch;
    for (std::int64_t step = 0; step < 300; ++step) stream.read(step, 0, 8, batch);
  });
  says(message, shard);
  says(message, "block 0");
  says(message, block_byte);
  std::vector<std::string> problems;
  for (const SourceAudit& audit : audit_sources(data))
    problems.insert(problems.end(), audit.problems.begin(), audit.problems.end());
  REQUIRE(problems.size() == 1);
  says(problems[0], block_byte);
}

TEST_CASE("fault: a bit of the document index, and a truncated shard, stop the start") {
  const Scratch scratch;
  const std::string data = copy_of_sample(scratch);
  const std::string shard = data + "/c4/c4-00000.h5";
  const std::string bytes = Scratch::read(shard);
  const auto start = [&] { BatchStream(causal_recipe(), data, {mixture_of({{"c4", 1}})}); };
  std::vector<Hash128> hashes = ShardReader(shard, Split::train).read_hashes();
  const std::string needle(reinterpret_cast<const char*>(&hashes[3]), sizeof hashes[3]);
  const std::size_t at = bytes.find(needle);
  REQUIRE(at != std::string::npos);
  std::string flipped = bytes;
  flipped[at] ^= 16;
  scratch.write("copy/c4/c4-00000.h5", flipped);
  std::string message = message_of<UserError>(start);
  says(message, shard);
  says(message, "document index of /train is damaged");
  scratch.write("copy/c4/c4-00000.h5", bytes.substr(0, bytes.size() - 100));
  message = message_of<UserError>(start);
  says(message, shard);
  says(message, "truncated");
  scratch.write("copy/c4/c4-00000.h5", "");
  says(message_of<UserError>(start), shard);
  CHECK_FALSE(audit_sources(data)[0].problems.empty());
}

TEST_CASE("fault: two tokenizers in one mixture, in one source, and a tokenizer file of another") {
  const Scratch scratch;
  const std::string data = copy_of_sample(scratch);
  PrepareOptions other = prepare_options(scratch.path("other"), {{"", sample("arxiv.jsonl")}});
  other.tokenizer = test::source_dir() + "/test/data/unigram-400.model";
  prepare(other, {});
  fs::copy(scratch.path("other/arxiv"), data + "/arxiv", fs::copy_options::recursive);
  const auto start = [&](const char* source) {
    return message_of<UserError>([&] {
      BatchStream(causal_recipe(), data, {mixture_of({{"c4", 1}, {source, 1}})});
    });
  };
  says(start("arxiv"), "source \"arxiv\" was prepared with another tokenizer");
  fs::copy(scratch.path("other/arxiv/arxiv-00000.h5"), data + "/github/github-99999.h5");
  says(start("github"), "github-99999.h5: was made with another tokenizer");
  fs::copy(other.tokenizer, data + "/tokenizer.model", fs::copy_options::overwrite_existing);
  says(message_of<UserError>([&] {
         BatchStream(causal_recipe(), data, {mixture_of({{"c4", 1}})});
       }),
       "source \"c4\" was prepared with another tokenizer");
}

TEST_CASE("fault: sources without documents, without shards, without training tokens") {
  const Scratch scratch;
  const std::string data = copy_of_sample(scratch);
  const auto start = [&](const char* source) {
    return message_of<UserError>([&] {
      BatchStream(causal_recipe(), data, {mixture_of({{source, 1}})});
    });
  };
  prepare(prepare_options(data, {{"", scratch.write("empty.jsonl", "")},
                                 {"", scratch.write("blank.jsonl", "{\"text\": \"\"}\n")}}),
          {});
  says(start("empty"), "source \"empty\"");
  says(start("empty"), "hold no training tokens");
  says(start("blank"), "hold no training tokens");
  fs::create_directory(data + "/bare");
  says(start("bare"), "no shards");
}

// A source of five shards.
std::string many_shards(const Scratch& scratch, int deflate) {
  std::string lines;
  for (int i = 0; i < 1200; ++i)
    lines += "{\"text\": \"document number " + std::to_string(i) + std::string(500, 'a') + "\"}\n";
  const std::string folder = scratch.path("data" + std::to_string(deflate));
  PrepareOptions options = prepare_options(folder, {{"many", scratch.write("many.jsonl", lines)}});
  options.shard_tokens = 1;  // a shard for every batch of 256 records
  options.deflate = deflate;
  options.validation_fraction = 0.0;
  prepare(options, {});
  return folder;
}

TEST_CASE("fault: a missing shard in the middle is found by the audit") {
  const Scratch scratch;
  const std::string folder = many_shards(scratch, 0);
  const std::vector<std::string> shards = list_shards(folder + "/many");
  REQUIRE(shards.size() == 5);
  CHECK(audit_sources(folder)[0].problems.empty());
  fs::remove(shards[1]);
  const SourceAudit audit = audit_sources(folder).at(0);
  REQUIRE(audit.problems.size() == 1);
  says(audit.problems[0], shards[2]);
  says(audit.problems[0], "a shard is missing");
}

// Each shard needs a file descriptor while it is read; there are more of them than may be open.
TEST_CASE("fault: more shards than may be open at a time") {
  const Scratch scratch;
  for (const int deflate : {0, 1}) {
    const std::string folder = many_shards(scratch, deflate);
    SourceReader unbounded(folder, "many", Split::train);
    OpenShards two(2);
    SourceReader bounded(folder, "many", Split::train, &two);
    REQUIRE(bounded.num_shards() == 5);
    DocumentStream a(unbounded, 1, {true, false});
    DocumentStream b(bounded, 1, {true, false});
    std::vector<std::int32_t> all;
    std::vector<std::int32_t> same;
    for (std::int64_t x = 0; x + 777 < a.epoch_tokens(0); x += 777) {
      a.read(x, 777, all, nullptr);
      b.read(x, 777, same, nullptr);
      REQUIRE(two.size() <= 2);
    }
    CHECK(all == same);
    // A shard that goes missing mid-run, found when it is opened again.
    const std::string gone = list_shards(folder + "/many")[3];
    fs::remove(gone);
    const std::string message =
        message_of<RuntimeFault>([&] { b.read(0, b.epoch_tokens(0), same, nullptr); });
    says(message, gone);
  }
}

}  // namespace
}  // namespace openmoe
