// The data commands as a user runs them, and a schedule of mixtures and objectives resumed on other
// grids.
#include <cmath>
#include <set>

#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

std::vector<json> train(int ranks, const std::string& run, const std::string& more) {
  const CommandResult result =
      run_openmoe(ranks, "train " + source_path("test/recipes/tiny-switches.json") + " --data " +
                             OPENMOE_TEST_SHARDS + " --out " + run + " " + more);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return read_json_lines(run + "/metrics.jsonl");
}

json show(const std::string& options) {
  const CommandResult result = run_command(std::string(OPENMOE_TEST_BINARY) + " data show " +
                                           source_path("test/recipes/tiny-switches.json") +
                                           " --data " + OPENMOE_TEST_SHARDS + " " + options);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return json::parse(result.output);
}

}  // namespace

// The losses are those of the rows: other rows would differ in the first digits.
TEST_CASE("resumed across each of two switches on another number of ranks: the same rows",
          "[resume][data]") {
  const TemporaryFolder folder;
  const auto straight = train(1, folder / "straight", "");
  REQUIRE(straight.size() == 12);
  const std::string run = folder / "split";
  train(2, run, "--ep 2 --set run.num_steps=3");
  train(4, run, "--ep 2 --set run.num_steps=7 --resume");                 // across the first switch
  const auto resumed = train(1, run, "--set run.num_steps=12 --resume");  // and the second
  REQUIRE(resumed.size() == straight.size());
  std::set<double> real_tokens;
  for (std::size_t step = 0; step < straight.size(); ++step) {
    INFO("step " << step);
    for (const char* key : {"positions", "real_tokens", "loss_tokens", "learning_rate"})
      CHECK(resumed[step].at(key) == straight[step].at(key));
    for (const char* key : {"loss", "cross_entropy"}) {
      const double a = resumed[step].at(key).get<double>();
      const double b = straight[step].at(key).get<double>();
      CHECK(std::abs(a - b) < 1e-4 * b);
    }
    real_tokens.insert(straight[step].at("real_tokens").get<double>());
  }
  CHECK(real_tokens.size() > 2);  // the objectives do differ
}

TEST_CASE("data show: rows of any step with segments, loss marks and documents", "[data]") {
  const json ul2 = show("--step 2 --row 5 --json");
  CHECK(ul2.at("step") == 2);
  CHECK(ul2.at("row") == 5);
  CHECK(ul2.at("inputs").size() == 64);
  CHECK(ul2.at("examples").size() >= 1);
  const json row = show("--step 100 --row 3 --json");
  CHECK(row.at("examples")[0].get<std::string>().find("prefix") != std::string::npos);
  std::int64_t end = 0;
  for (const json& part : row.at("stretches")) {
    CHECK(part.at("begin") == end);
    end = part.at("end");
    const auto at = part.at("begin").get<std::size_t>();
    CHECK(part.at("segment") == row.at("segment_ids")[at]);
    CHECK(part.at("loss_weight") == row.at("loss_weights")[at]);
  }
  CHECK(end == 64);
  REQUIRE_FALSE(row.at("documents").empty());
  for (const json& document : row.at("documents")) {
    // The record named is the document shown.
    std::ifstream input(document.at("input_file").get<std::string>());
    std::string line;
    for (std::int64_t i = 0; i <= document.at("record").get<std::int64_t>(); ++i)
      REQUIRE(std::getline(input, line));
    const json record = json::parse(line);
    CHECK((record.contains("text") || record.contains("content")));
    if (record.contains("lang")) CHECK(document.at("tag") == record.at("lang"));
  }
}

TEST_CASE("data show: colour on a terminal only, no row that is not there", "[data]") {
  const std::string command = std::string(OPENMOE_TEST_BINARY) + " data show " +
                              source_path("test/recipes/tiny-switches.json") + " --data " +
                              OPENMOE_TEST_SHARDS;
  const CommandResult plain = run_command(command + " --step 1");
  CHECK(plain.exit_code == 0);
  CHECK(plain.output.find('\033') == std::string::npos);
  CHECK(plain.output.find(", loss") != std::string::npos);
  CHECK(plain.output.find("record ") != std::string::npos);
  const CommandResult terminal =
      run_command("script -qec '" + command + " --step 1' /dev/null < /dev/null");
  REQUIRE(terminal.exit_code == 0);
  CHECK(terminal.output.find("\033[32m") != std::string::npos);
  const CommandResult wrong = run_command(command + " --row 16");
  CHECK(wrong.exit_code == 2);
  CHECK(wrong.output.find("rows 0 to 15") != std::string::npos);
}

TEST_CASE("data audit: mixtures, milestones and two tokenizers", "[data]") {
  const CommandResult result = run_command(
      std::string(OPENMOE_TEST_BINARY) + " data audit " +
      source_path("test/recipes/tiny-switches.json") + " --data " + OPENMOE_TEST_SHARDS +
      " --steps 12 --compare-tokenizer " + source_path("test/data/unigram-400.model") + " --json");
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  const json report = json::parse(result.output);
  for (const json& source : report.at("sources")) CHECK(source.at("problems").empty());
  CHECK(report.at("mixture").at("rows") == 12 * 16);
  for (const json& source : report.at("mixture").at("sources"))
    CHECK(std::abs(source.at("rows").get<double>() - source.at("asked_rows").get<double>()) < 24.0);
  std::vector<std::int64_t> milestones;
  for (const json& milestone : report.at("milestones")) milestones.push_back(milestone.at("step"));
  CHECK(milestones == std::vector<std::int64_t>{4, 8, 12});
  std::set<std::string> languages;
  for (const json& use : report.at("tokenizers")) {
    CHECK(use.at("other_tokens") > use.at("tokens"));  // 400 pieces against 8,000
    CHECK(use.at("distinct_ids") <= 8000);
    CHECK(use.at("other_distinct_ids") <= 400);
    if (use.at("source") == "the_stack") languages.insert(use.at("tag").get<std::string>());
  }
  CHECK(languages.count("C") == 1);
}

TEST_CASE("data bench: positions, padding and speed as JSON", "[data]") {
  const CommandResult result =
      run_command(std::string(OPENMOE_TEST_BINARY) + " data bench " +
                  source_path("test/recipes/tiny-switches.json") + " --data " +
                  OPENMOE_TEST_SHARDS + " --step 4 --steps 4 --json");
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  const json report = json::parse(result.output);
  CHECK(report.at("positions") == 4 * 16 * 64);
  CHECK(report.at("padding_share") == 0.0);
  CHECK(report.at("positions_per_cpu_second").get<double>() > 0.0);
}

}  // namespace openmoe::test
