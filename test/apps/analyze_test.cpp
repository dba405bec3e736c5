// openmoe analyze through the binary: the same numbers on any grid, logs of other systems, imported
// checkpoints, bad input.
#include <algorithm>
#include <fstream>

#include "core/base/check.h"
#include "data/h5_file.h"
#include "data/routing_log.h"
#include "test/support/catch.h"
#include "test/support/run_command.h"
#include "test/support/tiny_run.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

CommandResult analyze(int ranks, const std::string& arguments) {
  CommandResult result = run_openmoe(ranks, "analyze " + arguments);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return result;
}

std::string on_sample() {
  return std::string(" --data ") + OPENMOE_TEST_SHARDS +
         " --sources c4 github book --positions 512 --permutations 19 --resamples 20 --min-count 4";
}

void train(const std::string& run, const std::string& more =
                                       "--set run.num_steps=6 --set run.early_checkpoints=true "
                                       "--set run.keep_checkpoints=9") {
  const CommandResult result =
      run_openmoe(1, tiny_training(run, "--set run.validate_every=0 " + more));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
}

json results(const std::string& folder) {
  return json::parse(read_text(folder + "/results.json"));
}

// Everything but the command line.
json figures(const std::string& folder) {
  return results(folder).at("figures");
}

std::vector<std::string> files_of(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// A routing log of one MoE layer of three experts: the header, then `sequences`.
std::string write_log(const std::string& path, const std::string& name, int step,
                      const std::vector<std::string>& sequences) {
  std::ofstream file(path);
  file << R"({"format": "openmoe-routing-log", "format_version": 1, "num_experts": 3, "top_k": 2, )"
       << R"("layers": [0], "name": ")" << name << R"(", "step": )" << step << "}\n";
  for (const std::string& sequence : sequences) file << sequence << "\n";
  return path;
}

// Of tokens 3 and 4.
const std::string kSequence = R"({"tokens": [3, 4], "choices": [[[0, 1], [1, 2]]]})";

}  // namespace

TEST_CASE("analysis gives the same numbers on one rank and on four", "[analyze]") {
  const TemporaryFolder folder;
  train(folder / "run");
  const std::string what = folder / "run" + " --every-checkpoint" + on_sample();
  analyze(1, what + " --out " + folder / "one" + " --write-logs " + folder / "logs");
  analyze(4, what + " --ep 1 --out " + folder / "four");
  REQUIRE(files_of(folder / "one") == files_of(folder / "four"));
  int compared = 0;
  for (const std::string& name : files_of(folder / "one")) {
    if (!name.ends_with(".csv") && !name.ends_with(".svg")) continue;
    INFO(name);
    CHECK(read_text(folder / ("one/" + name)) == read_text(folder / ("four/" + name)));
    ++compared;
  }
  CHECK(compared > 20);
  CHECK(figures(folder / "one") == figures(folder / "four"));

  // Experts spread over ranks: the same sums in the same order, so the same choices.
  analyze(2, what + " --ep 2 --out " + folder / "shared");
  CHECK(figures(folder / "shared") == figures(folder / "one"));

  // Checkpoints before the first step and after 1, 2, 4 and 6 steps.
  CHECK(files_of(folder / "logs") ==
        std::vector<std::string>{"run-0.h5", "run-1.h5", "run-2.h5", "run-4.h5", "run-6.h5"});
  analyze(1, "--log " + folder / "logs/run-4.h5" + " " + folder / "logs/run-6.h5" +
                 " --permutations 19 --resamples 20 --min-count 4 --drop tokens:1.25:128"
                 " --drop tokens:2:128 --drop port:2:64 --out " +
                 folder / "from-logs");
  const auto table = [&](const std::string& from, const std::string& id) {
    for (const json& figure : figures(folder / from))
      if (figure.at("id") == id) return figure.at("rows");
    return json();
  };
  for (const char* id : {"domains", "top_tokens", "drops_by_position", "expert_load"})
    CHECK(table("from-logs", id) == table("one", id));

  const std::string report = read_text(folder / "one/report.html");
  CHECK(report.size() < 5'000'000);
  CHECK(report.find("<script") == std::string::npos);
  CHECK(report.find("src=") == std::string::npos);
  for (const char* paper :
       {"Figure 5", "Figure 9", "Figure 10", "Figure 11", "Figures 12a, 13 and 14", "Figure 15",
        "Figure 16", "Tables 9 and 15"}) {
    INFO(paper);
    CHECK(report.find(paper) != std::string::npos);
  }
}

TEST_CASE("simulated drops are those of the model's own router", "[analyze]") {
  const TemporaryFolder folder;
  train(folder / "run", "--set run.num_steps=3 --set run.routing_every=1");
  const json row = read_json_lines(folder / "run/metrics.jsonl").at(2).at("routing").at(0);
  // 16 rows of 64 are the whole batch; padding is not routed, and not in the log.
  const RoutingLog log = read_routing_log(folder / "run/routing/step-00000002.h5");
  CHECK(log.trace.num_tokens() == row.at("tokens"));
  std::vector<std::int64_t> first(4, 0), second(4, 0);
  for (std::size_t n = 0; n < log.trace.token_ids.size(); ++n) {
    ++first[log.trace.layers[0].choice[2 * n]];
    ++second[log.trace.layers[0].choice[2 * n + 1]];
  }
  CHECK(json(first) == row.at("first"));
  CHECK(json(second) == row.at("second"));
}

TEST_CASE("analysis of a log that another system wrote", "[analyze]") {
  const TemporaryFolder folder;
  std::ofstream log(folder / "mixtral.jsonl");
  log << R"({"format": "openmoe-routing-log", "format_version": 1, "num_experts": 3, "top_k": 2, "layers": [0]})"
      << "\n";
  for (int s = 0; s < 8; ++s)
    log << R"({"source": "text", "tokens": [3, 4, 5, 3], "choices": [[[0, 1], [1, 2], [2, 0], [0, 1]]]})"
        << "\n";
  log.close();
  analyze(1, "--log " + folder / "mixtral.jsonl" + " --drop assignments:0.75 --min-count 2 --out " +
                 folder / "out");
  // Every id has its expert: 1.0 of the entropy, every token predicted.
  for (const json& figure : figures(folder / "out")) {
    if (figure.at("id") == "prediction")
      for (const json& row : figure.at("rows"))
        if (row.at(2) == "token_id") CHECK(row.at(4) == 1.0);
    if (figure.at("id") == "top_tokens") {
      CHECK(figure.at("rows").at(0).at(3) == 3);
      CHECK(figure.at("rows").at(0).at(5) == 16);
    }
    // Groups of T = 4 tokens, C = max(4, ...): nothing is lost.
    if (figure.at("id") == "drops_by_position")
      for (const json& row : figure.at("rows")) CHECK(row.at(7) == 0.0);
  }
}

TEST_CASE("an imported checkpoint is analysed", "[analyze]") {
  const TemporaryFolder folder;
  train(folder / "run");
  for (const std::string& command : {"convert " + folder / "run" + " " + folder / "hf",
                                     "convert " + folder / "hf" + " " +
                                         folder / "back --set data.sequence_length=64"
                                                  " --set routing.group_tokens=128"}) {
    const CommandResult result = run_openmoe(1, command);
    INFO(command << "\n" << result.output);
    REQUIRE(result.exit_code == 0);
  }
  analyze(1, "run=" + folder / "run" + on_sample() + " --drop tokens:2 --out " + folder / "before");
  const CommandResult imported = analyze(
      1, "run=" + folder / "back" + on_sample() + " --drop tokens:2 --out " + folder / "after");
  CHECK(imported.output.find("does not record its tokenizer") != std::string::npos);
  for (const char* name : {"domains.csv", "top_tokens.csv", "positions.csv"})
    CHECK(read_text(folder / "before/" + name) == read_text(folder / "after/" + name));

  // It records no tokenizer, but the one kept with it is known, and that of the shards.
  const CommandResult prepared =
      run_openmoe(1, "prepare --tokenizer " + source_path("test/data/unigram-400.model") +
                         " --input " + source_path("data/sample/c4.jsonl") +
                         " --validation-fraction 0.5 --out " + folder / "data");
  REQUIRE(prepared.exit_code == 0);
  const CommandResult other = run_openmoe(1, "analyze " + folder / "back" + " --data " +
                                                 folder / "data" + " --out " + folder / "other");
  INFO(other.output);
  CHECK(other.exit_code == 2);
  CHECK(other.output.find("was made with another tokenizer") != std::string::npos);
}

TEST_CASE("routers that are frozen from a step on stay as they are", "[analyze]") {
  const TemporaryFolder folder;
  train(folder / "run",
        "--set run.num_steps=4 --set run.early_checkpoints=true --set run.keep_checkpoints=9 "
        "--set optimizer.router_frozen_from=2");
  const auto values = [&](const std::string& step, const std::string& name) {
    const H5File file(folder / ("run/checkpoints/step-0000000" + step + "/rank-00000.h5"),
                      H5File::Mode::read);
    const std::string dataset = "value/model.layers.1." + name;
    std::vector<float> numbers(static_cast<std::size_t>(file.info(dataset).shape.num_elements()));
    file.read(dataset, host_view(numbers.data(), file.info(dataset).shape));
    return numbers;
  };
  CHECK(values("1", "mlp.gate_weight") != values("2", "mlp.gate_weight"));
  CHECK(values("2", "mlp.gate_weight") == values("4", "mlp.gate_weight"));
  CHECK(values("2", "mlp.experts.wo") != values("4", "mlp.experts.wo"));
}

TEST_CASE("analyze refuses what it cannot analyse with one message", "[analyze]") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& arguments, const std::string& expected) {
    const CommandResult result = run_openmoe(1, "analyze " + arguments + " --out " + folder / "x");
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find(expected) != std::string::npos);
    const std::size_t at = result.output.find("error:");
    CHECK(at != std::string::npos);
    CHECK(result.output.find("error:", at + 1) == std::string::npos);
  };
  write_file(folder / "log.jsonl", "{\"format\": \"other\"}\n");
  refused("", "say what");
  for (const char* option :
       {"--every-checkpoint", "--data x", "--sources x", "--split train", "--input x",
        "--positions 5", "--length 64", "--tokenizer x", "--sentinels 3", "--capacity dropless",
        "--compute-type f32", "--write-logs x", "--ep 1", "--device cpu", "--collectives staged"})
    refused("--log " + folder / "log.jsonl" + " " + option, "leave one of the two out");
  refused("--log " + folder / "log.jsonl", "line 1: \"format\"");
  refused("--log " + folder / "none.h5", "is not a file");
  refused(folder / "none" + on_sample(), "holds no checkpoint");
  refused(folder.path(), "say on which text");

  for (const std::string run : {"a/run", "b/run"}) {
    std::filesystem::create_directories(std::filesystem::path(folder / run).parent_path());
    train(folder / run);
  }
  const std::string data =
      std::string(" --positions 128 --permutations 9 --resamples 9 --data ") + OPENMOE_TEST_SHARDS;
  refused(folder / "a/run" + " " + folder / "b/run" + data + " --sources c4", "name them");
  refused(folder / "a/run" + " " + folder / "a/run" + data + " --sources c4", "stands there twice");
  const std::string checkpoint = folder / "a/run/checkpoints/step-00000006";
  refused(checkpoint + data + " --sources c4 --every-checkpoint", "a single checkpoint");
  refused(folder / "a/run" + " --split train --input " + source_path("data/sample/c4.jsonl"),
          "--split: says what of --data");
  write_file(folder / "file", "");
  write_file(folder / "body.jsonl", "{\"body\": \"text\"}\n");
  refused(folder / "a/run" + " --input " + folder / "body.jsonl",
          "prepare --text-field takes another");
  refused(folder / "a/run" + data + " --write-logs " + folder / "file", "--write-logs ");
  refused("a/b=" + folder / "a/run" + data + " --write-logs " + folder / "logs", "choose another");

  // None of these needs weights, so they are found where there are none.
  std::filesystem::remove(checkpoint + "/rank-00000.h5");
  refused(folder / "a/run" + data + " --sources c4", "rank-00000.h5");
  refused(folder / "a/run" + data + " --sources c4 --drop tokens:1:99999999999", "drop rule");
  refused(folder / "a/run" + data + " --sources c4 --compare-tokenizer " + folder / "none",
          "--compare-tokenizer: ");
  std::filesystem::create_directories(folder / "foreign");
  write_file(folder / "foreign/notes.txt", "");
  const CommandResult result =
      run_openmoe(1, "analyze " + folder / "a/run" + data + " --out " + folder / "foreign");
  CHECK(result.exit_code == 2);
  CHECK(result.output.find("holds files that no analysis wrote, such as notes.txt") !=
        std::string::npos);
  CHECK(std::filesystem::exists(folder / "foreign/notes.txt"));
  refused(folder / "a/run" + data + " --sources c4 c4", "named twice");
  refused(folder / "a/run" + data + " --sources c4 --layer 7", "--layer 7: allowed: ");
  refused(folder / "a/run" + data + " --sources c4 --tokens '#-5'", "no piece");
}

// Ids that fit into the vocabulary, of another tokenizer.
TEST_CASE("text of another tokenizer than the checkpoint's is refused", "[analyze]") {
  const TemporaryFolder folder;
  train(folder / "run");
  const std::string other = source_path("test/data/unigram-400.model");
  const std::string input = source_path("data/sample/c4.jsonl");
  const CommandResult prepared =
      run_openmoe(1, "prepare --tokenizer " + other + " --input " + input +
                         " --validation-fraction 0.5 --out " + folder / "data");
  REQUIRE(prepared.exit_code == 0);
  const auto refused = [&](const std::string& arguments, const std::string& expected) {
    const CommandResult result =
        run_openmoe(1, "analyze " + folder / "run" + arguments + " --out " + folder / "out");
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find(expected) != std::string::npos);
  };
  refused(" --data " + folder / "data", "was made with another tokenizer");
  refused(" --input " + input + " --tokenizer " + other, "is not the tokenizer of");
  const std::string own = source_path("data/sample/unigram-8000.model");
  refused(" --input " + input + " --tokenizer " + own + " --sentinels 7", "with 7 sentinels");
  analyze(1, folder / "run" + " --input " + input + " --tokenizer " + own + " --sentinels 100" +
                 " --positions 128 --permutations 9 --resamples 9 --out " + folder / "out");
}

TEST_CASE("logs of two trainings are told apart", "[analyze]") {
  const TemporaryFolder folder;
  const auto log_of = [&](const std::string& place, int step) {
    std::filesystem::create_directories(folder / place);
    return write_log(folder / (place + "/" + std::to_string(step) + ".jsonl"), "tiny", step,
                     {kSequence, kSequence});
  };
  const std::string a1 = log_of("a", 1), a2 = log_of("a", 2), b1 = log_of("b", 1),
                    b2 = log_of("b", 2);
  const std::string rest = " --permutations 9 --resamples 9 --min-count 1 --out " + folder / "out";
  const auto refused = [&](const std::string& logs, const std::string& expected) {
    const CommandResult result = run_openmoe(1, "analyze --log " + logs + rest);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find(expected) != std::string::npos);
  };
  refused(a1 + " " + b2, "both call themselves tiny; name them");
  refused(a1 + " " + a1, "tiny, step 1: stands there twice");
  refused("x=" + a1 + " x=" + b1, "x, step 1: stands there twice");
  analyze(1, "--log " + a1 + " " + a2 + rest);
  CHECK(std::filesystem::exists(folder / "out/tokens_over_checkpoints.csv"));

  // One run has no course: what the analysis before wrote of it is gone, other files are not.
  write_file(folder / "out/notes.txt", "");
  analyze(1, "--log " + a1 + " other=" + b2 + rest);
  CHECK_FALSE(std::filesystem::exists(folder / "out/tokens_over_checkpoints.csv"));
  CHECK_FALSE(std::filesystem::exists(folder / "out/tokens_over_checkpoints-1.svg"));
  CHECK(std::filesystem::exists(folder / "out/drops_of_runs.csv"));
  CHECK(std::filesystem::exists(folder / "out/notes.txt"));
  const auto listed = json::parse(read_text(folder / "out/files.json")).at("files");
  CHECK(listed.size() == files_of(folder / "out").size() - 1);  // not itself, not the notes; the
                                                                // tables' temporary name
}

// The comparison with earlier steps goes on where a stopped run left it.
TEST_CASE("favourite experts are remembered over a resume", "[analyze]") {
  const TemporaryFolder folder;
  const std::string command = "train " + source_path("test/recipes/tiny-released.json") +
                              " --data " + OPENMOE_TEST_SHARDS +
                              " --set run.num_steps=6 --set run.validate_every=0"
                              " --set run.routing_every=1 --set run.checkpoint_every=3"
                              " --set run.keep_checkpoints=9 --out ";
  REQUIRE(run_openmoe(1, command + folder / "whole").exit_code == 0);
  std::filesystem::copy(folder / "whole", folder / "resumed",
                        std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "resumed/checkpoints/step-00000006");
  write_file(folder / "resumed/routing/step-00000009.h5", "of a later step, not a log");
  const CommandResult result = run_openmoe(2, command + folder / "resumed" + " --resume");
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK_FALSE(std::filesystem::exists(folder / "resumed/routing/step-00000009.h5"));
  const auto shares = [&](const std::string& run, std::size_t step) {
    return read_json_lines(folder / (run + "/metrics.jsonl")).at(step).at("routing").at(0);
  };
  CHECK_FALSE(shares("whole", 0).contains("unchanged_favourites"));
  for (const std::size_t step : {3, 4, 5}) {
    REQUIRE(shares("resumed", step).contains("unchanged_favourites"));
    CHECK(shares("resumed", step)["unchanged_favourites"] ==
          shares("whole", step)["unchanged_favourites"]);
    CHECK(shares("whole", step).at("checkpoint") == 3);
    CHECK(shares("resumed", step).at("unchanged_since_checkpoint") ==
          shares("whole", step).at("unchanged_since_checkpoint"));
  }
  // Right after a checkpoint it and the step before are the same.
  CHECK(shares("whole", 3)["unchanged_since_checkpoint"] ==
        shares("whole", 3)["unchanged_favourites"]);
  CHECK_FALSE(shares("whole", 2).contains("checkpoint"));

  // A damaged log costs the comparison, not the run.
  std::filesystem::remove_all(folder / "resumed/checkpoints/step-00000006");
  write_file(folder / "resumed/routing/step-00000002.h5", "damaged");
  const CommandResult again = run_openmoe(2, command + folder / "resumed" + " --resume");
  INFO(again.output);
  REQUIRE(again.exit_code == 0);
  CHECK(again.output.find("warning: favourite experts of earlier steps are not known") !=
        std::string::npos);
  CHECK_FALSE(shares("resumed", 3).contains("unchanged_favourites"));
  CHECK(shares("resumed", 5)["first"] == shares("whole", 5)["first"]);

  // A file where the folder belongs.
  std::filesystem::create_directories(folder / "blocked");
  write_file(folder / "blocked/routing", "");
  const CommandResult blocked = run_openmoe(1, command + folder / "blocked");
  INFO(blocked.output);
  CHECK(blocked.exit_code == 2);
  CHECK(blocked.output.find("cannot create the folder for routing logs") != std::string::npos);
}

// The drop rule of the recipe has its least capacity too: 64 slots for each expert of every group.
TEST_CASE("the recipe's least capacity counts in simulated drops", "[analyze]") {
  const TemporaryFolder folder;
  train(folder / "run",
        "--set run.num_steps=1 --set routing.min_capacity=64 --set routing.capacity_factor=0.25");
  const std::string output =
      analyze(1, folder / "run" + on_sample() + " --out " + folder / "out").output;
  INFO(output);
  CHECK(output.find("domains: 0.0 % of first choices lost in the first half of a row, 0.0 % in the "
                    "second") != std::string::npos);
}

// A shell names step-1000 before step-200.
TEST_CASE("logs of one run are taken by their steps", "[analyze]") {
  const TemporaryFolder folder;
  const auto log_of = [&](int step, std::size_t sequences) {
    return write_log(folder / ("step-" + std::to_string(step) + ".jsonl"), "run", step,
                     std::vector<std::string>(sequences, kSequence));
  };
  const std::string late = log_of(1000, 1), middle = log_of(200, 2), early = log_of(50, 2);
  const std::string rest = " --permutations 9 --resamples 9 --min-count 1 --out " + folder / "out";
  const std::string output = analyze(1, "--log " + late + " " + middle + " " + early + rest).output;
  std::vector<std::string> models;
  for (const json& figure : figures(folder / "out")) {
    if (figure.at("id") == "drops_by_position")
      CHECK(figure.at("rows").at(0).at(0) == "run @ 1000");
    if (figure.at("id") != "prediction") continue;
    for (const json& row : figure.at("rows")) {
      if (models.empty() || models.back() != row.at(0)) models.push_back(row.at(0));
      // A single document predicts nothing; intervals are those of the last.
      CHECK(row.at(4).is_null() == (row.at(0) == "run @ 1000"));
      CHECK(row.at(5).is_null());
    }
    CHECK(figure.at("finding").get<std::string>().find("token id: not computable") !=
          std::string::npos);
  }
  CHECK(models == std::vector<std::string>{"run @ 50", "run @ 200", "run @ 1000"});
  CHECK(output.find("0.0 % (") == std::string::npos);
  CHECK(read_text(folder / "out/prediction.csv").find("run @ 1000,0,token_id,first,,,,0\n") !=
        std::string::npos);
}

TEST_CASE("figures that are left out are named, demands that fit nothing are refused",
          "[analyze]") {
  const TemporaryFolder folder;
  const auto log_of = [&](int step, int token) {
    const std::string sequence = concat(R"({"source": "wikipedia", "tokens": [)", token,
                                        R"(, 4], "choices": [[[0, 1], [1, 2]]]})");
    return write_log(folder / ("step-" + std::to_string(step) + ".jsonl"), "run", step,
                     {sequence, sequence});
  };
  const std::string one = log_of(1, 3), two = log_of(2, 5);
  const std::string rest = " --permutations 9 --resamples 9 --out " + folder / "out";
  const std::string output = analyze(1, "--log " + one + rest).output;
  INFO(output);
  for (const char* expected :
       {"left out: Expert share by token id (Figure 10): no token id is seen 128 times",
        "left out: Expert share by natural language (Figure 7): no text fits parallel-*",
        "(Figure 11): there is one checkpoint or log of run"})
    CHECK(output.find(expected) != std::string::npos);
  CHECK(read_text(folder / "out/report.html").find("no token id is seen 128 times") !=
        std::string::npos);
  CHECK(results(folder / "out").at("left_out").size() >= 5);

  // An id that was asked for is shown however rare, and null where it does not occur.
  const std::string asked =
      analyze(1, "--log " + one + " " + two + rest + " --tokens '#3' '#4' '#0'").output;
  CHECK(asked.find("#0 (id 0) does not occur") != std::string::npos);
  int seen = 0;
  for (const json& figure : figures(folder / "out")) {
    if (figure.at("id") == "tokens") CHECK(figure.at("rows").size() == 3);  // of id 4, in the last
    if (figure.at("id") != "tokens_over_checkpoints") continue;
    for (const json& row : figure.at("rows")) {
      const bool occurs = row.at(2) == 4 || (row.at(2) == 3 && row.at(0) == "run @ 1");
      CHECK(row.at(5).is_null() == !occurs);
      CHECK(row.at(6).is_null() == (row.at(2) != 4));
      ++seen;
    }
  }
  CHECK(seen == 2 * 3 * 3);

  const auto refused = [&](const std::string& option, const std::string& expected) {
    const CommandResult result = run_openmoe(1, "analyze --log " + one + " " + option + rest);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find(expected) != std::string::npos);
  };
  refused("--domains wikipeda",
          "--domains wikipeda: fits none of the texts; sources and their "
          "tags here: wikipedia");
  refused("--tokens '#99999999'", "--tokens #99999999: allowed: #0 to #4");
  refused("--drop tokens:2 --drop tokens:2.0", "is named twice");
  const auto other_log = [&](const std::string& header) {
    write_file(folder / "other.jsonl",
               R"({"format": "openmoe-routing-log", "format_version": 1, "num_experts": 3, )"
               R"("top_k": 2, "name": "other", )" +
                   header + "}\n" + R"({"tokens": [3], "choices": [[[0, 1]]]})" + "\n");
    return "--log " + folder / "other.jsonl";
  };
  refused(other_log(R"("layers": [3])"), "MoE layers 3");
  refused("--min-count 0", "allowed: a whole number, 1 or more");
  refused("--layer -1", "allowed: a whole number, 0 or more");
}

TEST_CASE("the report of very many experts stays below 5 MB", "[analyze]") {
  const TemporaryFolder folder;
  std::ofstream log(folder / "wide.jsonl");
  log << R"({"format": "openmoe-routing-log", "format_version": 1, "num_experts": 8192, "top_k": 2, "layers": [0]})"
      << "\n";
  for (int s = 0; s < 2; ++s)
    log << R"({"tokens": [3, 4], "choices": [[[0, 1], [1, 2]]]})"
        << "\n";
  log.close();
  analyze(1, "--log " + folder / "wide.jsonl" +
                 " --permutations 1 --resamples 1 --min-count 1 --out " + folder / "out");
  const std::string report = read_text(folder / "out/report.html");
  CHECK(report.size() < 5'000'000);
  CHECK(report.find("<a href=\"positions-1.svg\">") != std::string::npos);
  CHECK(std::filesystem::exists(folder / "out/positions-1.svg"));
}

}  // namespace openmoe::test
