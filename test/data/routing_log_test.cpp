// Routing logs in both forms, and logs that are none.
#include "data/routing_log.h"

#include <filesystem>
#include <fstream>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/h5_file.h"
#include "test/support/catch.h"
#include "test/support/message_of.h"
#include "test/support/scratch.h"

namespace openmoe::test {
namespace {

RoutingLog small_log() {
  RoutingLog log;
  log.name = "small";
  log.step = 12;
  log.pieces = {"a", "b", "c"};
  RoutingTrace& trace = log.trace;
  trace.num_experts = 300;
  trace.top_k = 2;
  trace.sequence_length = 4;
  trace.sources = {"c4", "book"};
  trace.documents = {{0, "en"}, {0, ""}, {1, "fr"}};
  trace.sequence_offsets = {0, 3, 5};
  trace.sequence_sources = {0, 1};
  trace.token_ids = {2, 0, 1, 1, 2};
  trace.document = {0, 0, 1, 2, 2};
  trace.layers.resize(2);
  trace.layers[0] = {3, {0, 1, 299, 2, 1, 0, 5, 7, 8, 9}, {}};
  trace.layers[1] = {11, {4, 1, 2, 3, 1, 0, 5, 7, 8, 9}, std::vector<float>(10, 0.25f)};
  return log;
}

void check_equal(const RoutingTrace& a, const RoutingTrace& b) {
  CHECK(a.num_experts == b.num_experts);
  CHECK(a.top_k == b.top_k);
  CHECK(a.sequence_length == b.sequence_length);
  CHECK(a.sources == b.sources);
  CHECK(a.documents == b.documents);
  CHECK(a.sequence_offsets == b.sequence_offsets);
  CHECK(a.sequence_sources == b.sequence_sources);
  CHECK(a.token_ids == b.token_ids);
  CHECK(a.document == b.document);
  REQUIRE(a.layers.size() == b.layers.size());
  for (std::size_t l = 0; l < a.layers.size(); ++l) {
    CHECK(a.layers[l].layer == b.layers[l].layer);
    CHECK(a.layers[l].choice == b.layers[l].choice);
    CHECK(a.layers[l].gate == b.layers[l].gate);
  }
}

std::string refusal(const std::string& path) {
  return message_of<UserError>([&] { read_routing_log(path); });
}

const char* const kHeader =
    R"({"format": "openmoe-routing-log", "format_version": 1, "num_experts": 4, "top_k": 2, "layers": [1, 3]})"
    "\n";

}  // namespace

TEST_CASE("a routing log is read as it was written", "[routing]") {
  const Scratch folder;
  const RoutingLog log = small_log();
  write_routing_log(folder.path("log.h5"), log);
  const RoutingLog read = read_routing_log(folder.path("log.h5"));
  check_equal(read.trace, log.trace);
  CHECK(read.name == "small");
  CHECK(read.step == 12);
  CHECK(read.pieces == log.pieces);
}

TEST_CASE("a routing log in JSON Lines", "[routing]") {
  const Scratch folder;
  std::ofstream(folder.path("log.jsonl"))
      << kHeader
      << R"({"source": "c4", "tag": "en", "tokens": [7, 8], "choices": [[[0, 1], [2, 3]], [[1, 0], [3, 2]]]})"
      << "\n"
      << R"({"source": "book", "tokens": [9], "choices": [[[3, 1]], [[0, 2]]]})"
      << "\n";
  const RoutingTrace trace = read_routing_log(folder.path("log.jsonl")).trace;
  CHECK(trace.sources == std::vector<std::string>{"c4", "book"});
  CHECK(trace.documents == std::vector<DocumentOrigin>{{0, "en"}, {1, ""}});
  CHECK(trace.sequence_length == 2);
  CHECK(trace.token_ids == std::vector<std::int32_t>{7, 8, 9});
  CHECK(trace.layers[1].layer == 3);
  CHECK(trace.layers[1].choice == std::vector<std::uint16_t>{1, 0, 3, 2, 0, 2});
}

TEST_CASE("malformed routing logs in JSON Lines are refused with one message", "[routing]") {
  const Scratch folder;
  const auto refused = [&](const std::string& text, const std::string& expected) {
    std::ofstream(folder.path("log.jsonl")) << text;
    INFO(text);
    const std::string message = refusal(folder.path("log.jsonl"));
    INFO(message);
    CHECK(contains(message, expected));
    CHECK(contains(message, "log.jsonl"));
  };
  refused("", "is empty");
  refused("{\n", "line 1: is not a JSON object");
  refused("{\"format\": \"other\"}\n", "\"format\" is not");
  refused(R"({"format": "openmoe-routing-log", "format_version": 2})", "allowed: 1");
  refused(R"({"format": "openmoe-routing-log", "format_version": 1})", "no \"num_experts\"");
  refused(kHeader, "no token");
  const auto numbers = [](const char* experts, const char* length, const char* layers) {
    return concat(
        R"({"format": "openmoe-routing-log", "format_version": 1, "top_k": 2, "layers": )", layers,
        R"(, "num_experts": )", experts, R"(, "sequence_length": )", length, "}\n",
        R"({"tokens": [1], "choices": [[[0, 1]], [[0, 1]]]})");
  };
  refused(numbers("1", "4", "[1, 3]"), "line 1: num_experts is 1, allowed: 2 to 8192");
  refused(numbers("9000000000", "4", "[1, 3]"), "num_experts is 9000000000, allowed: 0 to 8192");
  refused(numbers("4", "2147483647", "[1, 3]"), "sequence_length 2147483647");
  refused(numbers("4", "4", "[3, 3]"), "layer 3 stands there twice");
  const std::string header = kHeader;
  refused(header + R"({"tokens": [1]})", "line 2: has no list \"choices\"");
  refused(header + R"({"tokens": [1], "choices": [[[0, 1]]]})", "\"choices\" has 1 entries");
  refused(header + R"({"tokens": [1], "choices": [[[0, 1]], []]})", "of layer 3");
  refused(header + R"({"tokens": [1], "choices": [[[0, 1]], [[0]]]})", "a list of 2 experts");
  refused(header + R"({"tokens": [1], "choices": [[[0, 1]], [[0, 4]]]})", "allowed: 0 to 3");
  refused(header + R"({"tokens": [1], "choices": [[[0, 1]], [[0, -1]]]})", "an expert is -1");
  refused(header + R"({"tokens": [9223372036854775813], "choices": [[[0, 1]], [[0, 2]]]})",
          "a token is 9223372036854775813");
  refused(header + R"({"tokens": [1.5], "choices": [[[0, 1]], [[0, 2]]]})", "an integer");
  refused(header + R"({"tokens": [1], "choices": [[[0, 1]], [[2, 2]]]})", "chosen twice");
  refused(header + R"({"source": 3, "tokens": [1]})", "\"source\" is not a string");
  CHECK(contains(refusal(folder.path("absent.jsonl")), "is not a file"));
}

TEST_CASE("malformed routing logs in HDF5 are refused with one message", "[routing]") {
  const Scratch folder;
  const std::string path = folder.path("log.h5");
  const auto refused = [&](auto&& damage, const std::string& expected) {
    RoutingLog log = small_log();
    damage(log);
    write_routing_log(path, log);
    const std::string message = refusal(path);
    INFO(message);
    CHECK(contains(message, expected));
    CHECK(contains(message, path));
  };
  refused([](RoutingLog& l) { l.trace.layers[0].choice[4] = 300; }, "allowed: 0 to 299");
  refused([](RoutingLog& l) { l.trace.layers[0].choice.resize(8); }, "layers/3/choices is u16 (4");
  refused([](RoutingLog& l) { l.trace.layers[1].gate.resize(8); }, "layers/11/gates is f32 (4");
  refused([](RoutingLog& l) { l.trace.layers.clear(); }, "no group layers");
  refused([](RoutingLog& l) { l.trace.sequence_offsets[1] = 6; }, "do not rise from 0");
  refused([](RoutingLog& l) { l.trace.sequence_sources.pop_back(); }, "sequence_sources");
  refused([](RoutingLog& l) { l.trace.document[0] = 3; }, "document 3");
  refused([](RoutingLog& l) { l.trace.documents[0].source = 2; }, "source 2");
  refused([](RoutingLog& l) { l.trace.token_ids[0] = -1; }, "token 0");
  refused([](RoutingLog& l) { l.trace.top_k = 0; }, "top_k 0");
  refused([](RoutingLog& l) { l.trace.sequence_length = 2; }, "sequence length, 2");

  refused([](RoutingLog& l) { l.trace.num_experts = 1 << 20; }, "num_experts is 1048576");
  refused([](RoutingLog& l) { l.trace.sequence_length = std::int64_t{1} << 40; },
          "sequence_length 1099511627776");

  { H5File(path, H5File::Mode::create).set_attribute("", "format", std::string("other")); }
  CHECK(contains(refusal(path), "its attribute format"));
  std::ofstream(path) << "no HDF5";
  CHECK(contains(refusal(path), "cannot be read as HDF5"));
}

// numpy's smaller types, which HDF5 converts.
TEST_CASE("a routing log of small number types is read", "[routing]") {
  const Scratch folder;
  const std::string path = folder.path("log.h5");
  const auto write = [&](const auto& change) {
    H5File file(path, H5File::Mode::create);
    file.set_attribute("", "format", std::string("openmoe-routing-log"));
    for (const auto& [name, value] :
         {std::pair{"format_version", 1}, {"num_experts", 4}, {"top_k", 2}})
      file.set_attribute("", name, std::int64_t{value});
    const std::vector<std::int16_t> ids = {7, 8}, offsets = {0, 2}, sources = {0};
    const std::vector<std::int8_t> choices = {0, 3, 2, 1};
    const std::vector<double> gates = {0.5, 0.25, 0.75, 0.125};
    file.write_raw("token_ids", "i16", {2}, ids.data());
    file.write_raw("sequence_offsets", "i16", {2}, offsets.data());
    file.write_raw("sequence_sources", "i16", {1}, sources.data());
    file.write_strings("sources", {"text"});
    file.create_group("layers/1");
    file.write_raw("layers/1/choices", "i8", {2, 2}, choices.data());
    file.write_raw("layers/1/gates", "f64", {2, 2}, gates.data());
    change(file);
    file.close();
  };
  write([](H5File&) {});
  const RoutingTrace trace = read_routing_log(path).trace;
  CHECK(trace.token_ids == std::vector<std::int32_t>{7, 8});
  CHECK(trace.layers[0].choice == std::vector<std::uint16_t>{0, 3, 2, 1});
  CHECK(trace.layers[0].gate == std::vector<float>{0.5f, 0.25f, 0.75f, 0.125f});

  // Another kind of object than the format has.
  const auto refused = [&](const std::string& expected, const auto& change) {
    write(change);
    const std::string message = refusal(path);
    INFO(message);
    CHECK(contains(message, expected));
    CHECK(contains(message, "described in data/routing_log.h"));
  };
  refused("name", [](H5File& file) { file.set_attribute("", "name", std::int64_t{3}); });
  refused("document_ids", [](H5File& file) { file.create_group("document_ids"); });
  refused("pieces", [](H5File& file) { file.create_group("pieces"); });
}

// Sizes are eight bytes of a file; memory is taken only for what is stored too.
TEST_CASE("routing logs that declare more than they hold are refused", "[routing]") {
  const Scratch folder;
  const std::string path = folder.path("log.h5");
  // Every dataset has a length of its own, by which it is found in the file.
  constexpr std::size_t kTokens = 7001, kSequences = 302, kDocuments = 211, kSources = 101,
                        kPieces = 503;
  RoutingLog log = small_log();
  log.pieces.assign(kPieces, "piece");
  RoutingTrace& trace = log.trace;
  trace.sources.assign(kSources, "source");
  trace.documents.assign(kDocuments, {0, "tag"});
  trace.token_ids.assign(kTokens, 1);
  trace.document.assign(kTokens, 0);
  trace.sequence_length = kTokens;
  trace.sequence_offsets.assign(kSequences + 1, 0);
  trace.sequence_offsets.back() = kTokens;
  trace.sequence_sources.assign(kSequences, 0);
  for (LayerTrace& layer : trace.layers) {
    layer.choice.clear();
    for (std::size_t n = 0; n < kTokens; ++n) layer.choice.insert(layer.choice.end(), {0, 1});
    layer.gate.clear();
  }
  write_routing_log(path, log);
  read_routing_log(path);
  const std::string whole = Scratch::read(path);
  const auto bytes_of = [](std::uint64_t value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof value);
  };
  for (const auto& [length, field] : {std::pair{kTokens, "token_ids"},
                                      {kSequences + 1, "sequence_offsets"},
                                      {kSequences, "sequence_sources"},
                                      {kSources, "sources"},
                                      {kPieces, "pieces"},
                                      {kDocuments, "document_sources"}}) {
    std::string damaged = whole;
    for (std::size_t at = 0; (at = damaged.find(bytes_of(length), at)) != std::string::npos; ++at)
      damaged.replace(at, sizeof length, bytes_of(std::uint64_t{1} << 44));
    std::ofstream(path, std::ios::binary) << damaged;
    const std::string message = refusal(path);
    INFO(message);
    CHECK(contains(message, path));
    CHECK(
        contains(message, std::string("dataset ") + field + " declares the shape (17592186044416"));
  }
}

}  // namespace openmoe::test
