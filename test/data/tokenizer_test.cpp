#include "data/tokenizer.h"

#include <algorithm>
#include <sstream>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "data/record_reader.h"
#include "test/data/data_support.h"
#include "test/support/catch.h"

namespace openmoe {
namespace {

using test::sample;

std::vector<std::int32_t> by_library(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<std::int32_t> ids;
  tokenizer.encode_by_library(text, ids);
  return ids;
}

// The sample's model with <extra_id_2>, <extra_id_1>, <extra_id_0> appended as user-defined pieces.
std::string model_with_sentinels() {
  std::string model = test::Scratch::read(sample("unigram-8000.model"));
  for (const char digit : {'2', '1', '0'}) {
    const std::string text = std::string("\xe2\x96\x81<extra_id_") + digit + ">";
    std::string piece = std::string("\x0a") + static_cast<char>(text.size()) + text;
    piece += std::string("\x15\0\0\0\0", 5);  // score 0
    piece += "\x18\x04";                      // type: user defined
    model += std::string("\x0a") + static_cast<char>(piece.size()) + piece;
  }
  return model;
}

TEST_CASE("tokenizer: word by word gives SentencePiece's ids on every line of the sample") {
  const Tokenizer tokenizer(sample("unigram-8000.model"));
  WordCache cache;
  std::int64_t num_lines = 0;
  for (const char* file : {"the_stack", "parallel-ja", "parallel-ar", "arxiv", "conversations"}) {
    const auto reader =
        open_input(list_inputs(sample(std::string(file) + ".jsonl")).at(0), 1 << 23);
    Document document;
    std::int64_t at = 0;
    for (RawRecord record; reader->next(record);) {
      REQUIRE(parse_document(record, "", document, at).empty());
      // Whole documents: the sum of scores grows, and its rounding decides ties.
      std::vector<std::int32_t> whole;
      tokenizer.encode(document.text, whole, &cache);
      if (whole != by_library(tokenizer, document.text)) FAIL(file << " line " << record.line);
      std::istringstream lines(document.text);
      for (std::string line; std::getline(lines, line); ++num_lines) {
        std::vector<std::int32_t> cached;
        tokenizer.encode(line, cached, &cache);
        const std::vector<std::int32_t> expected = by_library(tokenizer, line);
        if (cached != expected) {
          CAPTURE(file, line);
          REQUIRE(cached == expected);
        }
        if (tokenizer.encode(line) != expected) FAIL("without a cache: " << line);
      }
    }
  }
  CHECK(num_lines > 10000);
}

TEST_CASE("tokenizer: odd strings, whole and random, are those of SentencePiece") {
  const Tokenizer tokenizer(sample("unigram-8000.model"));
  WordCache cache;
  const std::string word_start = "\xe2\x96\x81";
  for (const std::string& text :
       {std::string(), std::string(" "), std::string("   "), std::string("\n"),
        std::string("\t\n \n"), word_start, "a" + word_start + word_start + "b",
        std::string("  leading and trailing  "), std::string(300, 'x'), std::string("</s><pad>"),
        std::string("🙂🙂 👩‍👩‍👧"), std::string("\x01\x02\x7f"),
        std::string("<extra_id_0> <0x0A>")}) {
    std::vector<std::int32_t> ids;
    tokenizer.encode(text, ids, &cache);
    CAPTURE(text);
    CHECK(ids == by_library(tokenizer, text));
  }
  const char* alphabet[] = {"a", "e", "th", " ", "  ", "\n", "é",  "漢",  "字", "🙂",
                            "▁", "0", "9",  "_", "(",  ");", "\t", "the", "ing"};
  Rng rng(5, 6);
  for (int i = 0; i < 3000; ++i) {
    std::string text;
    const std::uint64_t length = 1 + rng.next_below(30);
    for (std::uint64_t k = 0; k < length; ++k)
      text += alphabet[rng.next_below(std::size(alphabet))];
    std::vector<std::int32_t> ids;
    tokenizer.encode(text, ids, &cache);
    if (ids != by_library(tokenizer, text)) {
      CAPTURE(text);
      REQUIRE(ids == by_library(tokenizer, text));
    }
    if (i % 10 == 0 && text.find(word_start) == std::string::npos)
      REQUIRE(tokenizer.decode(ids) == text);
  }
}

TEST_CASE("tokenizer: sentinels in the model file, and a number that contradicts it") {
  const test::Scratch scratch;
  const std::string path = scratch.write("with.model", model_with_sentinels());
  const Tokenizer tokenizer(path);
  CHECK(tokenizer.num_pieces() == 8000);
  CHECK(tokenizer.num_sentinels() == 3);
  CHECK(tokenizer.piece(tokenizer.sentinel(0)) == "<extra_id_0>");
  CHECK_THROWS_AS(Tokenizer(path, 100), UserError);
  // The library then does the encoding, and takes a sentinel in the text for one.
  const std::vector<std::int32_t> ids = tokenizer.encode("a <extra_id_1> b");
  CHECK(std::count(ids.begin(), ids.end(), tokenizer.sentinel(1)) == 1);
}

}  // namespace
}  // namespace openmoe
