#include "data/routing_log_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/record_reader.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kMaxLineBytes = std::int64_t{1} << 30;

class LogLines {
 public:
  explicit LogLines(const std::string& path) : path_(path) {
    InputInfo input;
    input.path = path;
    reader_ = open_input(input, kMaxLineBytes);
  }

  // The next line as an object; false at the end.
  bool next(Json& object) {
    if (!reader_->next(record_)) return false;
    if (!record_.problem.empty()) fail(record_.problem);
    object = Json::parse(record_.bytes, nullptr, false);
    if (!object.is_object()) fail("is not a JSON object");
    return true;
  }

  [[noreturn]] void fail(const std::string& problem) const {
    throw UserError(concat(path_, ", line ", record_.line, ": ", problem,
                           "; the format is described in data/routing_log.h"));
  }

  std::int64_t integer(const Json& value, const std::string& what, std::int64_t most) const {
    if (!value.is_number_integer())
      fail(what + " is " + value.dump().substr(0, 40) + ", allowed: an integer");
    // Beyond 2^63 the value would turn negative.
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(most))
      fail(concat(what, " is ", value.get<std::uint64_t>(), ", allowed: 0 to ", most));
    const auto number = value.get<std::int64_t>();
    if (number < 0 || number > most) fail(concat(what, " is ", number, ", allowed: 0 to ", most));
    return number;
  }
  const Json& list(const Json& object, const char* key, std::int64_t size) const {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_array()) fail(concat("has no list \"", key, "\""));
    if (size >= 0 && static_cast<std::int64_t>(found->size()) != size)
      fail(concat("\"", key, "\" has ", found->size(), " entries, allowed: ", size));
    return *found;
  }
  std::string text(const Json& object, const char* key, const std::string& otherwise) const {
    const auto found = object.find(key);
    if (found == object.end()) return otherwise;
    if (!found->is_string()) fail(concat("\"", key, "\" is not a string"));
    return found->get<std::string>();
  }

 private:
  std::string path_;
  std::unique_ptr<RecordReader> reader_;
  RawRecord record_;
};

constexpr std::int64_t kMostIds = 2147483647;

void read_header(const LogLines& lines, const Json& header, RoutingLog& log) {
  if (lines.text(header, "format", "") != "openmoe-routing-log")
    lines.fail("\"format\" is not \"openmoe-routing-log\"");
  const auto count = [&](const char* key, std::int64_t most) {
    if (!header.contains(key)) lines.fail(concat("has no \"", key, "\""));
    return lines.integer(header.at(key), key, most);
  };
  if (const std::int64_t version = count("format_version", 1000000); version != 1)
    lines.fail(concat("format_version is ", version, ", allowed: 1"));
  log.trace.num_experts = count("num_experts", RoutingTrace::kMaxExperts);
  log.trace.top_k = count("top_k", 256);
  if (log.trace.num_experts < 2)
    lines.fail(concat("num_experts is ", log.trace.num_experts, ", allowed: 2 to ",
                      RoutingTrace::kMaxExperts));
  log.trace.sequence_length =
      header.contains("sequence_length") ? count("sequence_length", kMostIds) : 0;
  log.name = lines.text(header, "name", "");
  if (header.contains("step")) log.step = count("step", std::int64_t{1} << 62);
  if (header.contains("pieces"))
    for (const Json& piece : lines.list(header, "pieces", -1))
      log.pieces.push_back(piece.is_string() ? piece.get<std::string>() : piece.dump());
  for (const Json& number : lines.list(header, "layers", -1)) {
    LayerTrace layer;
    layer.layer = lines.integer(number, "layers", 1000000);
    log.trace.layers.push_back(layer);
  }
}

void read_sequence(const LogLines& lines, const Json& object, RoutingTrace& trace) {
  const std::string name = lines.text(object, "source", "text");
  const auto found = std::find(trace.sources.begin(), trace.sources.end(), name);
  const auto source = static_cast<std::int32_t>(found - trace.sources.begin());
  if (found == trace.sources.end()) trace.sources.push_back(name);
  trace.sequence_sources.push_back(source);
  trace.documents.push_back({source, lines.text(object, "tag", "")});

  const Json& tokens = lines.list(object, "tokens", -1);
  for (const Json& token : tokens) {
    trace.token_ids.push_back(static_cast<std::int32_t>(lines.integer(token, "a token", kMostIds)));
    trace.document.push_back(static_cast<std::int32_t>(trace.documents.size() - 1));
  }
  trace.sequence_offsets.push_back(trace.num_tokens());
  const Json& choices =
      lines.list(object, "choices", static_cast<std::int64_t>(trace.layers.size()));
  for (std::size_t l = 0; l < trace.layers.size(); ++l) {
    if (!choices[l].is_array() || choices[l].size() != tokens.size())
      lines.fail(concat("\"choices\" of layer ", trace.layers[l].layer, " are not a list of ",
                        tokens.size(), ", one entry for each token"));
    for (const Json& experts : choices[l]) {
      if (!experts.is_array() || static_cast<std::int64_t>(experts.size()) != trace.top_k)
        lines.fail(concat("an entry of \"choices\" is ", experts.dump().substr(0, 40),
                          ", allowed: a list of ", trace.top_k, " experts"));
      for (const Json& expert : experts)
        trace.layers[l].choice.push_back(
            static_cast<std::uint16_t>(lines.integer(expert, "an expert", trace.num_experts - 1)));
    }
  }
}

}  // namespace

RoutingLog read_routing_json(const std::string& path) {
  LogLines lines(path);
  Json object;
  if (!lines.next(object)) throw UserError(path + ": is empty; a routing log begins with a header");
  RoutingLog log;
  read_header(lines, object, log);
  while (lines.next(object)) read_sequence(lines, object, log.trace);
  RoutingTrace& trace = log.trace;
  if (trace.sequence_length == 0) trace.sequence_length = trace.longest_sequence();
  return log;
}

}  // namespace openmoe
