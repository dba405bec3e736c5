#include "apps/row_json.h"

#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "data/tokenizer.h"

namespace openmoe {
namespace {

// Positions [begin, end) of a row that share segment and loss mark.
struct Stretch {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int32_t segment = 0;
  float weight = 0.0f;
};

std::vector<Stretch> stretches_of(const Batch& batch, std::int64_t row) {
  std::vector<Stretch> found;
  for (std::int64_t t = 0; t < batch.sequence_length; ++t) {
    const auto at = static_cast<std::size_t>(row * batch.sequence_length + t);
    const std::int32_t segment = batch.segment_ids[at];
    const float weight = batch.loss_weights[at];
    if (found.empty() || found.back().segment != segment || found.back().weight != weight)
      found.push_back({t, t, segment, weight});
    found.back().end = t + 1;
  }
  return found;
}

}  // namespace

nlohmann::ordered_json row_as_json(BatchStream& stream, std::int64_t step, std::int64_t first_row,
                                   const Batch& batch, std::int64_t row) {
  const RowOrigin origin = stream.origin(step, first_row + row);
  const auto begin = row * batch.sequence_length;
  const auto slice = [&](const auto& values) {
    return std::vector(values.begin() + begin, values.begin() + begin + batch.sequence_length);
  };
  nlohmann::ordered_json json;
  json["step"] = step;
  json["row"] = first_row + row;
  json["source"] = origin.source;
  json["examples"] = origin.examples;
  json["inputs"] = slice(batch.inputs);
  json["targets"] = slice(batch.targets);
  json["loss_weights"] = slice(batch.loss_weights);
  json["segment_ids"] = slice(batch.segment_ids);
  json["stretches"] = nlohmann::ordered_json::array();
  for (const Stretch& part : stretches_of(batch, row)) {
    const std::span<const std::int32_t> ids(batch.targets.data() + begin + part.begin,
                                            static_cast<std::size_t>(part.end - part.begin));
    json["stretches"].push_back(
        {{"begin", part.begin},
         {"end", part.end},
         {"segment", part.segment},
         {"loss_weight", part.weight},
         {"text", part.segment == 0 ? "" : stream.tokenizer().decode(ids)}});
  }
  json["documents"] = nlohmann::ordered_json::array();
  for (const RowOrigin::Document& document : origin.documents)
    json["documents"].push_back({{"shard", document.shard},
                                 {"document", document.document},
                                 {"input_file", document.input_file},
                                 {"record", document.record},
                                 {"tag", document.tag},
                                 {"epoch", document.epoch},
                                 {"first_token", document.first_token},
                                 {"num_tokens", document.num_tokens}});
  return json;
}

std::string to_line(const nlohmann::ordered_json& row) {
  return row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace openmoe
