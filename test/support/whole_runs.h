// Whole trainings through the binary, on any ranks and device, and what two of the same recipe must
// agree in.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {

// Shards of the sample corpus, made once by the fixture test "prepare the sample corpus".
inline std::string sample_shards() {
  return OPENMOE_TEST_SHARDS;
}

inline std::string train_arguments(const std::string& recipe, const std::string& run,
                                   const std::string& more = "") {
  return "train " + source_path("test/recipes/" + recipe) + " --data " + sample_shards() +
         " --out " + run + " " + more;
}

inline std::vector<nlohmann::json> train(int ranks, const std::string& recipe,
                                         const std::string& run, const std::string& more = "",
                                         const std::string& binary = OPENMOE_TEST_BINARY) {
  const CommandResult result = run_openmoe(ranks, train_arguments(recipe, run, more), binary);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return read_json_lines(run + "/metrics.jsonl");
}

inline double relative_error(const nlohmann::json& a, const nlohmann::json& b) {
  const double x = a.get<double>(), y = b.get<double>();
  return std::abs(x - y) / std::max(std::abs(y), 1e-12);
}

inline double assignments(const nlohmann::json& row) {
  double total = 0.0;
  for (const nlohmann::json& layer : row.at("moe"))
    for (const nlohmann::json& load : layer.at("expert_load")) total += load.get<double>();
  return total;
}

// Results do not depend on the grid: losses agree to rounding; drops exactly at first, later up to
// near ties.
inline void check_same_run(const std::vector<nlohmann::json>& ours,
                           const std::vector<nlohmann::json>& reference) {
  REQUIRE(ours.size() == reference.size());
  for (std::size_t step = 0; step < ours.size(); ++step) {
    INFO("step " << step);
    for (const char* key :
         {"loss", "cross_entropy", "logits_z_loss", "load_balance_loss", "router_z_loss"}) {
      INFO(key);
      CHECK(relative_error(ours[step].at(key), reference[step].at(key)) < 1e-4);
    }
    for (const char* key : {"positions", "real_tokens", "loss_tokens", "learning_rate"})
      CHECK(ours[step].at(key) == reference[step].at(key));
    for (const char* key : {"dropped_first", "dropped_second"}) {
      const double difference =
          std::abs(ours[step].at(key).get<double>() - reference[step].at(key).get<double>());
      CHECK(difference <= (step == 0 ? 0.0 : std::max(1.0, 1e-3 * assignments(reference[step]))));
    }
  }
}

}  // namespace openmoe::test
