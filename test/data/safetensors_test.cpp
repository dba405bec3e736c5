// The safetensors reader on files of the real library and on damaged ones; the writer against the
// reader. The real library reads our files in test/python.
#include "data/safetensors.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "core/base/error.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"
#include "test/support/scratch.h"

namespace openmoe::test {
namespace {

const std::string kCorpus = source_dir() + "/test/fuzz/corpus/safetensors/";

std::vector<float> read_all(WeightFile& file, const std::string& name) {
  for (std::size_t i = 0; i < file.weights().size(); ++i) {
    const WeightInfo& weight = file.weights()[i];
    if (weight.name != name) continue;
    std::vector<float> values(static_cast<std::size_t>(weight.num_elements()));
    file.read_rows(i, 0, weight.num_rows(), values.data());
    return values;
  }
  throw std::runtime_error("no tensor " + name);
}

std::string file_of(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

// What opening a file with this header and `data_bytes` of tensors says.
std::string refusal(const std::string& header, std::size_t data_bytes) {
  return message_of<UserError>([&] {
    parse_safetensors_header(header, static_cast<std::int64_t>(data_bytes), "some.safetensors");
  });
}

std::string entry(const std::string& shape, const std::string& offsets,
                  const std::string& dtype = "\"F32\"") {
  return "{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

}  // namespace

TEST_CASE("safetensors: a file of the original library is read exactly", "[safetensors]") {
  const auto file = open_weight_file(kCorpus + "mixed.safetensors");
  REQUIRE(file->weights().size() == 6);
  CHECK(read_all(*file, "full") == std::vector<float>{-2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f});
  CHECK(read_all(*file, "half") == std::vector<float>{0.0f, 0.25f, 0.5f, 0.75f, 1.0f, 1.25f});
  CHECK(read_all(*file, "brain") == std::vector<float>{0.0f, 3.0f, 6.0f, 9.0f});
  CHECK(read_all(*file, "scalar") == std::vector<float>{7.0f});
  CHECK(read_all(*file, "empty").empty());
  // Some rows of a stack: row 3 of the (6, 4) matrix is the first of the second slice.
  for (std::size_t i = 0; i < 6; ++i) {
    if (file->weights()[i].name != "stack") continue;
    std::vector<float> row(4);
    file->read_rows(i, 3, 1, row.data());
    CHECK(row == std::vector<float>{12.0f, 13.0f, 14.0f, 15.0f});
  }
}

TEST_CASE("safetensors: integers are listed but not read", "[safetensors]") {
  const auto file = open_weight_file(kCorpus + "integers.safetensors");
  CHECK(file->weights().at(0).type == WeightType::other);
  CHECK(contains(message_of<UserError>([&] { read_all(*file, "ids"); }), "I64"));
}

TEST_CASE("safetensors: what is written is read back bit for bit", "[safetensors]") {
  const Scratch scratch;
  const std::vector<WeightInfo> weights = {{"a", WeightType::f32, "", {3, 5}},
                                           {"b", WeightType::bf16, "", {7}},
                                           {"c", WeightType::f16, "", {2, 2}},
                                           {"nothing", WeightType::f32, "", {0, 4}},
                                           {"d", WeightType::f32, "", {}}};
  std::vector<float> a(15), b(7), c(4), d(1, std::numeric_limits<float>::quiet_NaN());
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = std::ldexp(1.0f + 0.37f * float(i), int(i) - 7);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = float(i) - 3.0f;
  for (std::size_t i = 0; i < c.size(); ++i) c[i] = std::ldexp(1.0f, -24 + int(i) * 9);
  const std::string path = scratch.path("ours.safetensors");
  SafetensorsWriter writer(path, weights, {{"format", "pt"}});
  writer.append(a.data(), 10);
  writer.append(a.data() + 10, 5);
  writer.append(b.data(), 7);
  writer.append(c.data(), 4);
  writer.append(d.data(), 1);
  writer.close();
  const auto file = open_weight_file(path);
  CHECK(read_all(*file, "a") == a);
  CHECK(read_all(*file, "b") == b);
  CHECK(read_all(*file, "c") == c);
  CHECK(std::isnan(read_all(*file, "d")[0]));
}

TEST_CASE("weights: every f16 and bf16 survives f32 and back", "[safetensors]") {
  for (const WeightType type : {WeightType::f16, WeightType::bf16}) {
    for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
      const auto stored = static_cast<std::uint16_t>(bits);
      float value = 0;
      decode_weights(type, &stored, &value, 1);
      std::uint16_t back = 0;
      const std::int64_t overflows = encode_weights(type, &value, &back, 1);
      if (back != stored || overflows != 0) {
        INFO(name_of(type) << " " << bits << " -> " << value << " -> " << back);
        // A signalling NaN of bf16 becomes quiet.
        CHECK(std::isnan(value));
        CHECK(type == WeightType::bf16);
        CHECK((back & ~0x40u) == (stored & ~0x40u));
      }
    }
  }
  float value = 0;
  std::uint16_t half = 0x3555;  // the f16 nearest to 1/3: 0.333251953125
  decode_weights(WeightType::f16, &half, &value, 1);
  CHECK(value == 0.333251953125f);
}

TEST_CASE("weights: rounding to f16 is to nearest, ties to even", "[safetensors]") {
  const auto to_half = [](float value) {
    std::uint16_t bits = 0;
    encode_weights(WeightType::f16, &value, &bits, 1);
    return bits;
  };
  CHECK(to_half(1.0f + 0x1p-11f) == 0x3c00);             // a tie: 1 is even
  CHECK(to_half(1.0f + 0x1p-11f + 0x1p-20f) == 0x3c01);  // above the tie
  CHECK(to_half(1.0f + 3 * 0x1p-11f) == 0x3c02);         // a tie: up to even
  CHECK(to_half(0x1p-25f) == 0x0000);                    // a tie between 0 and the least subnormal
  CHECK(to_half(0x1.8p-25f) == 0x0001);
  CHECK(to_half(65519.0f) == 0x7bff);
  CHECK(to_half(-0.0f) == 0x8000);
  const float large[] = {65520.0f, -1e30f, std::numeric_limits<float>::infinity(), 1.0f};
  std::uint16_t bits[4];
  CHECK(encode_weights(WeightType::f16, large, bits, 4) == 2);
}

TEST_CASE("safetensors: a value too large for f16 is refused by name", "[safetensors]") {
  const Scratch scratch;
  SafetensorsWriter writer(scratch.path("x.safetensors"), {{"big", WeightType::f16, "", {2}}}, {});
  const float values[] = {1.0f, 7e4f};
  const std::string text = message_of<UserError>([&] { writer.append(values, 2); });
  CHECK(contains(text, "\"big\""));
  CHECK(contains(text, "bf16"));
}

TEST_CASE("safetensors: wrong headers are refused and say why", "[safetensors]") {
  struct Case {
    std::string header;
    std::size_t data_bytes;
    std::vector<std::string> phrases;
  };
  const std::string a = "\"a\":";
  const std::vector<Case> cases = {
      {"{" + a + entry("[2]", "[0,8]") + "}", 8, {}},
      {"{\"__metadata__\":{\"format\":\"pt\"}," + a + entry("[2]", "[0,8]") + "}  ", 8, {}},
      {"{" + a + entry("[2]", "[0,8]") + "}", 4, {"\"a\"", "4 bytes", "truncated"}},
      {"{" + a + entry("[2]", "[0,8]") + "}", 12, {"4 bytes behind"}},
      {"{" + a + entry("[3]", "[0,8]") + "}", 8, {"\"a\"", "takes 12"}},
      {"{" + a + entry("[2]", "[8,0]") + "}", 8, {"\"a\"", "backwards"}},
      {"{" + a + entry("[1152921504606846976]", "[0,8]") + "}",
       8,
       {"\"a\"", "takes 4611686018427387904"}},
      {"{" + a + entry("[4611686018427387904]", "[0,8]") + "}", 8, {"\"a\"", "addressed"}},
      {"{" + a + entry("[2147483648,2147483648,4]", "[0,0]") + "}", 0, {"\"a\"", "addressed"}},
      {"{" + a + entry("[0,9223372036854775807,9223372036854775807]", "[0,0]") + "}",
       0,
       {"addressed"}},
      {"{" + a + entry("[18446744073709551615]", "[0,8]") + "}",
       8,
       {"\"a\"", "18446744073709551615"}},
      {"{" + a + entry("[-1]", "[0,8]") + "}", 8, {"-1", "whole numbers"}},
      {"{" + a + entry("[2.0]", "[0,8]") + "}", 8, {"2.0", "whole numbers"}},
      {"{" + a + entry("2", "[0,8]") + "}", 8, {"in its shape"}},
      {"{" + a + entry("[2]", "[0,8,8]") + "}", 8, {"data_offsets"}},
      {"{" + a + entry("[2]", "[0]") + "}", 8, {"1 data_offsets"}},
      {"{" + a + entry("[2]", "[0,8]", "\"F31\"") + "}", 8, {"\"F31\"", "unknown"}},
      {"{" + a + entry("[2]", "[0,8]", "32") + "}", 8, {"dtype"}},
      {"{" + a + "{\"dtype\":\"F32\",\"shape\":[2]}}", 8, {"no data_offsets"}},
      {"{" + a + "{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 8, {"repeats", "dtype"}},
      {"{" + a + "{\"size\":2}}", 8, {"\"size\"", "unknown key"}},
      {"{" + a + entry("[2]", "[0,8]") + "," + a + entry("[2]", "[8,16]") + "}",
       16,
       {"\"a\"", "more than once"}},
      {"{" + a + entry("[2]", "[0,8]") + ",\"b\":" + entry("[2]", "[4,12]") + "}",
       12,
       {"\"b\"", "inside"}},
      {"{" + a + entry("[2]", "[0,8]") + ",\"b\":" + entry("[2]", "[12,20]") + "}",
       20,
       {"\"b\"", "holes"}},
      {"{\"__metadata__\":{\"k\":1}}", 0, {"__metadata__", "text"}},
      {"{" + a + "[]}", 0, {"\"a\"", "a list"}},
      {"[]", 0, {"not one JSON object"}},
      {"{}{}", 0, {"JSON"}},
      {"{" + a, 0, {"JSON"}},
      {"{\"a\\u0007\":1}", 0, {"\\x07"}},
      {std::string(100000, '['), 0, {"JSON object"}},
  };
  for (const Case& item : cases) {
    const std::string text = refusal(item.header, item.data_bytes);
    INFO(item.header.substr(0, 120) << " -> " << text);
    CHECK(text.empty() == item.phrases.empty());
    if (!text.empty()) CHECK(contains(text, "some.safetensors"));
    for (const std::string& phrase : item.phrases) CHECK(contains(text, phrase));
  }
}

TEST_CASE("safetensors: wrong files are refused and say why", "[safetensors]") {
  const Scratch scratch;
  const auto open = [&](const std::string& bytes) {
    const std::string path = scratch.write("x.safetensors", bytes);
    return message_of<UserError>([&] { open_weight_file(path); });
  };
  CHECK(contains(open(""), "0 bytes"));
  CHECK(contains(open("1234567"), "7 bytes"));
  CHECK(contains(open(std::string(8, '\xff')), "18446744073709551615"));
  CHECK(contains(open(file_of("{}", "").substr(0, 9)), "truncated"));
  CHECK(contains(open(file_of(" {}", "")), "'{'"));
  CHECK(open(file_of("{}", "")).empty());
  CHECK(contains(message_of<UserError>([&] { open_weight_file(scratch.path("nowhere")); }),
                 "nowhere"));
  CHECK(contains(message_of<UserError>([&] { open_weight_file(scratch.path()); }), "regular file"));
}

TEST_CASE("safetensors: damaged files are read or refused, never worse", "[safetensors]") {
  const Scratch scratch;
  std::mt19937 random(5);
  const std::string good = Scratch::read(kCorpus + "mixed.safetensors");
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = good;
    for (unsigned i = 0; i <= random() % 3; ++i)
      bytes[random() % (8 + bytes.size() / 2)] = static_cast<char>(random());
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    const std::string path = scratch.write("x.safetensors", bytes);
    refused += !message_of<UserError>([&] {
                  const auto file = open_weight_file(path);
                  for (const WeightInfo& weight : file->weights())
                    if (weight.type != WeightType::other) read_all(*file, weight.name);
                }).empty();
  }
  CHECK(refused > 1000);
}

}  // namespace openmoe::test
