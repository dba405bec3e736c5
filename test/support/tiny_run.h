// Trainings of the smallest recipe, and what of their records no clock decides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "test/support/run_command.h"

namespace openmoe::test {

// The arguments of `openmoe` that train it on the sample corpus into a run folder.
inline std::string tiny_training(const std::string& run, const std::string& more) {
  return "train " + source_path("test/recipes/tiny-released.json") + " --data " +
         OPENMOE_TEST_SHARDS + " --out " + run + " " + more;
}

// Rows of metrics.jsonl so far, of a run that may still write them.
inline std::int64_t num_rows(const std::string& run) {
  std::ifstream in(run + "/metrics.jsonl");
  return std::count(std::istreambuf_iterator<char>(in), {}, '\n');
}

inline std::vector<nlohmann::json> without_times(std::vector<nlohmann::json> rows) {
  for (nlohmann::json& row : rows)
    for (const char* key :
         {"tokens_per_s", "step_seconds", "routing_seconds", "slowest_rank", "slowest_rank_share"})
      row.erase(key);
  return rows;
}

}  // namespace openmoe::test
