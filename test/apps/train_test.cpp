// Whole training runs through the binary: the grid changes nothing, resuming changes nothing, bad
// input ends every rank.
#include <cmath>

#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

// Shards of the sample corpus, made once by the fixture test "prepare the sample corpus".
std::string sample_shards() {
  return OPENMOE_TEST_SHARDS;
}

std::string train_arguments(const std::string& recipe, const std::string& run,
                            const std::string& more = "") {
  return "train " + source_path("test/recipes/" + recipe) + " --data " + sample_shards() +
         " --out " + run + " " + more;
}

std::vector<json> train(int ranks, const std::string& recipe, const std::string& run,
                        const std::string& more = "") {
  const CommandResult result = run_openmoe(ranks, train_arguments(recipe, run, more));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return read_json_lines(run + "/metrics.jsonl");
}

double relative_error(const json& a, const json& b) {
  const double x = a.get<double>(), y = b.get<double>();
  return std::abs(x - y) / std::max(std::abs(y), 1e-12);
}

double assignments(const json& row) {
  double total = 0.0;
  for (const json& layer : row.at("moe"))
    for (const json& load : layer.at("expert_load")) total += load.get<double>();
  return total;
}

// Decision: results do not depend on the grid. Losses agree to rounding; drops exactly at first,
// later up to near ties.
void check_same_run(const std::vector<json>& ours, const std::vector<json>& reference) {
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

// Rows without what a clock decides.
std::vector<json> without_times(std::vector<json> rows) {
  for (json& row : rows) {
    row.erase("tokens_per_s");
    row.erase("step_seconds");
  }
  return rows;
}

}  // namespace

TEST_CASE("the grid does not change the loss curve", "[grid]") {
  const TemporaryFolder folder;
  for (const std::string recipe : {"tiny-released.json", "tiny-paper.json"}) {
    INFO(recipe);
    const auto reference = train(1, recipe, folder / (recipe + "-1"));
    REQUIRE(reference.size() == 30);
    CHECK(reference[0].at("dropped_second").get<double>() > 0.0);
    if (recipe == "tiny-released.json")  // its UL2 rows are padded, as the original's were
      CHECK(reference[0].at("real_tokens") < reference[0].at("positions"));
    SECTION(recipe + " ep=2") {
      check_same_run(train(2, recipe, folder / "ep2", "--ep 2"), reference);
    }
    SECTION(recipe + " dp=2") {
      check_same_run(train(2, recipe, folder / "dp2", "--ep 1"), reference);
    }
    SECTION(recipe + " dp=2 x ep=2") {
      check_same_run(train(4, recipe, folder / "dp2ep2", "--ep 2"), reference);
    }
    SECTION(recipe + " micro-batches") {
      check_same_run(train(1, recipe, folder / "micro", "--set parallel.micro_batch_rows=2"),
                     reference);
    }
  }
}

TEST_CASE("ten steps and ten more are twenty", "[resume]") {
  const TemporaryFolder folder;
  const std::string steps = "--ep 2 --set run.checkpoint_every=5 --set run.num_steps=";
  const auto straight =
      without_times(train(2, "tiny-released.json", folder / "straight", steps + "20"));
  train(2, "tiny-released.json", folder / "split", steps + "10");
  const auto resumed =
      without_times(train(2, "tiny-released.json", folder / "split", steps + "20 --resume"));
  CHECK(resumed == straight);
}

TEST_CASE("a run continues on another grid", "[resume]") {
  const TemporaryFolder folder;
  const std::string steps = "--set run.num_steps=";
  const auto straight = train(1, "tiny-released.json", folder / "straight", steps + "20");
  train(2, "tiny-released.json", folder / "split", steps + "10 --ep 2");
  check_same_run(train(4, "tiny-released.json", folder / "split", steps + "20 --ep 2 --resume"),
                 straight);
}

TEST_CASE("wrong input ends every rank with one clear error", "[errors]") {
  const TemporaryFolder folder;
  const auto refuse = [&](int ranks, const std::string& arguments, const std::string& phrase) {
    const CommandResult result = run_openmoe(ranks, arguments);
    INFO(arguments);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find(phrase) != std::string::npos);
    // Said once, not once per rank.
    const auto first = result.output.find("openmoe: error");
    CHECK(first != std::string::npos);
    CHECK(result.output.find("openmoe: error", first + 1) == std::string::npos);
  };
  const std::string run = folder / "run";
  refuse(2, train_arguments("tiny-released.json", run, "--set model.num_heds=3"), "num_heads");
  refuse(2, train_arguments("tiny-released.json", run, "--set model.num_heads=true"),
         "model.num_heads");
  refuse(3, train_arguments("tiny-released.json", run, "--ep 3"), "num_experts");
  refuse(2, train_arguments("tiny-released.json", run, "--ep 4"), "ep");
  refuse(4, train_arguments("tiny-released.json", run, "--ep 1 --set data.batch_rows=4"),
         "group_tokens");
  refuse(2,
         "train " + source_path("test/recipes/tiny-released.json") + " --data " +
             (folder / "nowhere") + " --out " + run,
         "nowhere");
  refuse(2, train_arguments("tiny-released.json", "/proc/nowhere/run"), "/proc/nowhere/run");
  train(1, "tiny-released.json", run, "--set run.num_steps=1");
  refuse(2, train_arguments("tiny-released.json", run), "--resume");
  refuse(2, train_arguments("tiny-released.json", run, "--resume --set model.ffn_dim=96"), "model");
}

}  // namespace openmoe::test
