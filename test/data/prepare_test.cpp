#include "data/prepare.h"

#include <chrono>
#include <filesystem>
#include <map>
#include <thread>

#include "core/base/error.h"
#include "data/h5_file.h"
#include "data/record_reader.h"
#include "data/shard.h"
#include "data/tokenizer.h"
#include "test/data/data_support.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;
using test::prepare_options;
using test::sample;
using test::Scratch;

std::string failure_of(const PrepareOptions& options) {
  return test::message_of<UserError>([&] { prepare(options, {}); });
}

// Every file below a folder and its bytes.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      files[fs::relative(entry.path(), folder).string()] = Scratch::read(entry.path().string());
  return files;
}

TEST_CASE("tokenizer: ids, sentinels, tags and round trips") {
  const Tokenizer tokenizer(sample("unigram-8000.model"), 100);
  CHECK(tokenizer.num_pieces() == 8000);
  CHECK(tokenizer.sentinel(0) == 8099);
  CHECK(tokenizer.sentinel(99) == 8000);
  CHECK(tokenizer.piece(8099) == "<extra_id_0>");
  const std::string text = "for (int i = 0; i < n; ++i) {\n\tsum += \"größe\" + x[i];  // 数\n}\n";
  CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  CHECK(tokenizer.hash() != Tokenizer(sample("unigram-8000.model"), 300).hash());
  CHECK(tokenizer.hash() == Tokenizer(sample("unigram-8000.model")).hash());  // 100 by default
  CHECK_THROWS_AS(Tokenizer(sample("manifest.json")), UserError);
  CHECK_THROWS_AS(Tokenizer("/nowhere.model"), UserError);
}

TEST_CASE("records: fields of RedPajama, The Stack and WildChat; text; bad ones with their byte") {
  RawRecord record;
  Document document;
  std::int64_t at = 0;
  const auto parse = [&](const std::string& line) {
    record.bytes = line;
    return parse_document(record, "", document, at);
  };
  CHECK(parse(R"({"meta": {"language": "de", "text": "no"}, "text": "yes"})").empty());
  CHECK(document.text == "yes");
  CHECK(document.tag == "de");
  CHECK(parse(R"({"content": "int x;", "lang": "C", "size": 6})").empty());
  CHECK(document.text == "int x;");
  CHECK(document.tag == "C");
  CHECK(parse(R"({"meta": {"task": "slides"}, "text": "yes"})").empty());
  CHECK(document.tag == "slides");
  CHECK(
      parse(
          R"({"conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})")
          .empty());
  CHECK(document.text == "a\n\nb");
  CHECK(parse_document(record, "body", document, at).find("\"body\"") != std::string::npos);
  CHECK(parse(R"({"id": 5})").find("none of the fields") != std::string::npos);
  CHECK(parse(R"({"text": null})").find("not a string") != std::string::npos);
  CHECK(parse(R"([1, 2])").find("not a JSON object") != std::string::npos);
  CHECK(parse("").find("malformed JSON") != std::string::npos);
  CHECK(parse(R"({"text": "a\u0000b"})").find("NUL") != std::string::npos);
  CHECK_FALSE(parse("{\"text\": \"ab\xff\"}").empty());
  CHECK(at == 12);
  CHECK_FALSE(parse(R"({"text": "half \ud83d"})").empty());
  CHECK_FALSE(parse(R"({"text": "x"} trailing)").empty());
  CHECK(find_invalid_utf8("aé漢🙂") == std::string::npos);
  CHECK(find_invalid_utf8("a\xc0\x80") == 1);         // overlong
  CHECK(find_invalid_utf8("ab\xed\xa0\x80") == 2);    // surrogate
  CHECK(find_invalid_utf8("\xf4\x90\x80\x80") == 0);  // beyond U+10FFFF
  CHECK(find_invalid_utf8("abc\xe2\x82") == 3);       // cut off
}

TEST_CASE("prepare: tokens, offsets, tags, hashes and splits are those of the text") {
  const Scratch scratch;
  const PrepareReport report =
      prepare(prepare_options(scratch.path("out"), {{"stack", sample("the_stack.jsonl")}}), {});
  REQUIRE(report.sources.size() == 1);
  CHECK(report.sources[0].counts.documents[0] + report.sources[0].counts.documents[1] == 83);
  CHECK(report.sources[0].counts.documents[1] > 5);
  const Tokenizer tokenizer(scratch.path("out/tokenizer.model"), 100);
  const std::unique_ptr<RecordReader> records =
      open_input(list_inputs(sample("the_stack.jsonl")).at(0), 1 << 23);
  std::vector<Document> documents;
  std::vector<Hash128> hashes;
  for (RawRecord record; records->next(record);) {
    std::int64_t at = 0;
    documents.emplace_back();
    REQUIRE(parse_document(record, "", documents.back(), at).empty());
    hashes.push_back(xxh3_128(documents.back().text));
  }
  for (const Split split : {Split::train, Split::validation}) {
    ShardReader shard(scratch.path("out/stack/the_stack-00000.h5"), split);
    const std::vector<std::int64_t> numbers = shard.read_records();
    const std::vector<std::string> tags = shard.read_tags();
    const std::vector<Hash128> stored = shard.read_hashes();
    std::vector<std::int64_t> offsets(numbers.size() + 1);
    shard.read_offsets(0, shard.num_documents(), offsets.data());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const auto number = static_cast<std::size_t>(numbers[i]);
      std::vector<std::int32_t> ids;
      shard.read_tokens(offsets[i], offsets[i + 1], ids);
      REQUIRE(ids == tokenizer.encode(documents[number].text));
      REQUIRE(tags[i] == documents[number].tag);
      REQUIRE(stored[i] == hashes[number]);
    }
    CHECK(shard.verify().empty());
  }
  const ShardHeader header = read_shard_header(scratch.path("out/stack/the_stack-00000.h5"));
  CHECK(header.input_sha256 == sha256_file(sample("the_stack.jsonl")));
  CHECK(header.tokenizer_sha256 == tokenizer.hash());
  CHECK(header.records_end == 83);
  CHECK(header.input_complete);
}

TEST_CASE("prepare: compressed inputs, threads and shard compression do not change the documents") {
  const Scratch scratch;
  const std::string text = Scratch::read(sample("c4.jsonl"));
  scratch.write("in/c4.jsonl", text);
  REQUIRE(std::system(("gzip -kf " + scratch.path("in/c4.jsonl") + " && zstd -qkf " +
                       scratch.path("in/c4.jsonl"))
                          .c_str()) == 0);
  std::vector<std::vector<std::int32_t>> results;
  int number = 0;
  for (const char* ending : {"", ".gz", ".zst"}) {
    PrepareOptions options =
        prepare_options(scratch.path("out" + std::to_string(number)),
                        {{"c4", scratch.path(std::string("in/c4.jsonl") + ending)}});
    options.num_threads = 1 + number;
    options.deflate = number * 3;
    prepare(options, {});
    ShardReader shard(options.out + "/c4/c4-00000.h5", Split::train);
    results.emplace_back();
    shard.read_tokens(0, shard.num_tokens(), results.back());
    ++number;
  }
  CHECK(results[0].size() > 40000);
  CHECK(results[1] == results[0]);
  CHECK(results[2] == results[0]);
}

TEST_CASE("prepare: a killed run continues after its last whole shard, to the same bytes") {
  const Scratch scratch;
  std::string lines;
  for (int i = 0; i < 1500; ++i)
    lines += "{\"text\": \"document number " + std::to_string(i * i) + "\"}\n";
  PrepareOptions options =
      prepare_options(scratch.path("whole"), {{"s", scratch.write("s.jsonl", lines)}});
  options.shard_tokens = 1000;
  prepare(options, {});
  const auto whole = contents(scratch.path("whole"));
  REQUIRE(whole.size() > 4);
  options.out = scratch.path("cut");
  // The bytes must not hold the time, whose unit in HDF5 is the second.
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  prepare(options, {});
  fs::remove(scratch.path("cut/s/s-00002.h5"));
  fs::remove(scratch.path("cut/s/s-00003.h5"));
  for (int i = 4; fs::remove(scratch.path("cut/s/s-0000" + std::to_string(i) + ".h5"));) ++i;
  scratch.write("cut/s/s-00002.h5.tmp", "half a shard");
  const PrepareReport report = prepare(options, {});
  CHECK(report.sources[0].reused_shards == 2);
  CHECK(contents(scratch.path("cut")) == whole);
  CHECK(prepare(options, {}).sources[0].reused_shards == report.sources[0].counts.shards);
  options.validation_fraction = 0.5;
  CHECK(failure_of(options).find("set of options") != std::string::npos);
}

TEST_CASE("prepare: duplicates are removed over all sources and counted") {
  const Scratch scratch;
  const std::string a = scratch.write(
      "a.jsonl",
      "{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\": \"one\"}\n{\"text\": \"\"}\n");
  const std::string b = scratch.write("b.jsonl", "{\"text\": \"two\"}\n{\"text\": \"three\"}\n");
  PrepareOptions options = prepare_options(scratch.path("out"), {{"", a}, {"", b}});
  options.remove_duplicates = true;
  const PrepareReport report = prepare(options, {});
  CHECK(report.sources[0].counts.duplicates_removed == 1);
  CHECK(report.sources[0].counts.empty_documents == 1);
  CHECK(report.sources[1].counts.duplicates_removed == 1);
  CHECK(report.sources[1].counts.documents[0] + report.sources[1].counts.documents[1] == 1);
}

TEST_CASE("prepare: bad records stop it with file, line and byte, or are skipped and counted") {
  const Scratch scratch;
  const std::string good = "{\"text\": \"good\"}\n";
  const std::string path =
      scratch.write("bad.jsonl", good + "{\"text\": \"x\xff\"}\n" + good + "{oops}\n" + good +
                                     "{\"text\": \"" + std::string(3000, 'y') + "\"}\n");
  PrepareOptions options = prepare_options(scratch.path("out"), {{"", path}});
  options.max_record_bytes = 1000;
  const std::string message = failure_of(options);
  CHECK(message.find(path + ": line 2, byte offset 28") !=
        std::string::npos);  // 17 bytes of line 1, 11 before the bad one
  CHECK(message.find("--skip-bad-records") != std::string::npos);
  CHECK(list_shards(scratch.path("out/bad")).empty());
  options.skip_bad_records = true;
  const PrepareReport report = prepare(options, {});
  CHECK(report.sources[0].counts.skipped_records == 3);
  CHECK(report.sources[0].counts.documents[0] + report.sources[0].counts.documents[1] == 3);
  REQUIRE(report.skipped.size() == 3);
  CHECK(report.skipped[1].find("line 4") != std::string::npos);
  CHECK(report.skipped[2].find("more than the limit of 1000") != std::string::npos);
}

TEST_CASE("prepare: damaged archives, other tokenizers, folders of text, name clashes") {
  const Scratch scratch;
  scratch.write("in/c4.jsonl", Scratch::read(sample("c4.jsonl")));
  REQUIRE(std::system(("gzip -f " + scratch.path("in/c4.jsonl")).c_str()) == 0);
  const std::string packed = Scratch::read(scratch.path("in/c4.jsonl.gz"));
  scratch.write("in/c4.jsonl.gz", packed.substr(0, packed.size() / 2));
  CHECK(failure_of(prepare_options(scratch.path("cut"), {{"", scratch.path("in/c4.jsonl.gz")}}))
            .find("truncated gzip") != std::string::npos);

  scratch.write("texts/a.txt", "first text");
  scratch.write("texts/deep/b.md", "second text");
  const PrepareReport report =
      prepare(prepare_options(scratch.path("out"), {{"", scratch.path("texts")}}), {});
  CHECK(report.sources[0].source == "texts");
  CHECK(report.sources[0].counts.documents[0] + report.sources[0].counts.documents[1] == 2);
  scratch.write("texts/c.txt", "bad \xff");
  CHECK(failure_of(prepare_options(scratch.path("out2"), {{"", scratch.path("texts")}}))
            .find("c.txt: line 1, byte offset 4") != std::string::npos);

  PrepareOptions other = prepare_options(scratch.path("out"), {{"x", sample("c4.jsonl")}});
  other.tokenizer = scratch.write(
      "other.model", Scratch::read(sample("unigram-8000.model")) + std::string("\x22\x00", 2));
  CHECK(failure_of(other).find("another tokenizer") != std::string::npos);
  CHECK(failure_of(prepare_options(scratch.path("out3"),
                                   {{"s", sample("c4.jsonl")}, {"s", sample("c4.jsonl")}}))
            .find("same shards") != std::string::npos);
  CHECK(failure_of(prepare_options(scratch.path("out4"), {{"", "/nowhere.jsonl"}}))
            .find("/nowhere.jsonl") != std::string::npos);
}

}  // namespace
}  // namespace openmoe
