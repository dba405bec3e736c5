// Runs that are asked to stop, or killed, and go on: nothing of the result shows it.
#include <algorithm>
#include <cstdlib>
#include <random>

#include "test/support/background_job.h"
#include "test/support/catch.h"
#include "test/support/tiny_run.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

// The text of metrics.jsonl without what a clock decides.
std::string metrics_without_times(const std::string& run) {
  std::string text;
  for (const json& row : without_times(read_json_lines(run + "/metrics.jsonl")))
    text += row.dump() + "\n";
  return text;
}

std::string text_of(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string undisturbed(const std::string& run, const std::string& settings) {
  const CommandResult result = run_openmoe(2, tiny_training(run, settings));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return metrics_without_times(run);
}

// The files that a run's checkpoints consist of, by their manifests.
std::vector<std::string> checkpoint_hashes(const std::string& run) {
  std::vector<std::string> hashes;
  for (const auto& entry : std::filesystem::directory_iterator(run + "/checkpoints")) {
    const json manifest = json::parse(text_of(entry.path() / "manifest.json"));
    for (const json& file : manifest.at("files"))
      hashes.push_back(entry.path().filename().string() + " " + file.dump());
  }
  std::sort(hashes.begin(), hashes.end());
  return hashes;
}

bool has(const std::string& text, const std::string& phrase) {
  return text.find(phrase) != std::string::npos;
}

}  // namespace

TEST_CASE("a signal to one rank, or to mpirun, saves and stops the job, which then goes on",
          "[signals]") {
  const TemporaryFolder folder;
  const std::string grid = GENERATE("--ep 2", "--tp 2");
  INFO(grid);
  const std::string settings = grid + " --set run.num_steps=150 --set run.validate_every=50";
  const std::string expected = undisturbed(folder / "straight", settings);

  struct Case {
    const char* name;
    int signal;
    int rank;  // -1: mpirun
    int exit_code;
  };
  const std::string run = folder / "run";
  std::int64_t rows = 0;
  bool first = true;
  for (const Case& now : {Case{"SIGTERM", SIGTERM, 1, 85}, Case{"SIGUSR1", SIGUSR1, 0, 85},
                          Case{"SIGUSR1", SIGUSR1, -1, 85}, Case{"SIGINT", SIGINT, 1, 130}}) {
    INFO(now.name << " to rank " << now.rank);
    BackgroundJob job(2, tiny_training(run, settings + (first ? "" : " --resume")),
                      folder / "output");
    first = false;
    REQUIRE(job.wait_until([&] { return num_rows(run) >= rows + 5; }));
    const pid_t target = now.rank < 0 ? job.launcher() : job.pid_of_rank(now.rank);
    REQUIRE(target > 0);
    REQUIRE(kill(target, now.signal) == 0);
    const int exit_code = job.wait_for_end(60);
    INFO(job.output());
    CHECK(exit_code == now.exit_code);
    CHECK(has(job.output(), std::string("stopped by ") + now.name));
    rows = num_rows(run);
    REQUIRE(rows < 150);
    char name[40];
    std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(rows));
    CHECK(std::filesystem::exists(run + "/checkpoints/" + name + "/manifest.json"));
  }
  const CommandResult rest = run_openmoe(2, tiny_training(run, settings + " --resume"));
  INFO(rest.output);
  CHECK(rest.exit_code == 0);
  CHECK(metrics_without_times(run) == expected);
  CHECK(text_of(run + "/validation.jsonl") == text_of(folder / "straight/validation.jsonl"));
}

TEST_CASE("checkpoints in the background change neither metrics nor a byte of a checkpoint",
          "[checkpoints]") {
  const TemporaryFolder folder;
  const std::string settings =
      "--ep 2 --set run.num_steps=11 --set run.checkpoint_every=2 --set run.keep_checkpoints=2 "
      "--set run.keep_every=4 --set run.early_checkpoints=true --set run.validate_every=5";
  const std::string expected = undisturbed(folder / "main", settings);
  const std::string background = " --set run.checkpoint_in_background=true";
  const CommandResult result =
      run_openmoe(2, tiny_training(folder / "side", settings + background));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK(metrics_without_times(folder / "side") == expected);
  const auto hashes = checkpoint_hashes(folder / "main");
  CHECK(hashes.size() == 8);  // of two ranks after steps 4, 8, 10 and 11
  CHECK(checkpoint_hashes(folder / "side") == hashes);
  for (const char* step : {"00000000", "00000001", "00000006", "00000011"})
    CHECK(has(result.output, std::string("saved ") + (folder / "side/checkpoints/step-") + step));
  // The copy is in the table of memory: rank 0 holds half of the experts and all else, and its
  // statistics, all of which it writes.
  CHECK(has(result.output, "  snapshot "));
}

TEST_CASE("a job killed while a checkpoint is written beside it goes on from the one before",
          "[kill]") {
  const TemporaryFolder folder;
  const std::string settings =
      "--ep 2 --set run.num_steps=90 --set run.checkpoint_every=3 "
      "--set run.checkpoint_in_background=true";
  const std::string expected = undisturbed(folder / "straight", settings);
  const std::string run = folder / "run";
  namespace fs = std::filesystem;
  const auto partial = [&] {
    std::error_code ignored;
    for (fs::directory_iterator entry(run + "/checkpoints", ignored), end; !ignored && entry != end;
         entry.increment(ignored))
      if (entry->path().extension() == ".partial") return entry->path().filename().string();
    return std::string();
  };
  const auto step_of = [](const std::string& name) {  // ".step-00000012.partial"
    return name.empty() ? std::int64_t{-1} : std::stoll(name.substr(6, 8));
  };
  int interrupted = 0;
  std::string left;
  for (int attempt = 0; interrupted < 3; ++attempt) {
    REQUIRE(attempt < 12);
    BackgroundJob job(2, tiny_training(run, settings + " --resume"), folder / "output");
    // What the last job left is there until this one saves; it begins with fewer rows.
    const bool began =
        left.empty() || job.wait_until([&] { return num_rows(run) < step_of(left); });
    const bool saves = began && job.wait_until([&] {
      const std::int64_t step = step_of(partial());
      return step > 0 && num_rows(run) >= step;
    });
    INFO("attempt " << attempt << ": " << job.output());
    REQUIRE(saves);
    job.kill_all();
    left = partial();
    if (left.empty()) continue;  // it was complete a moment before
    ++interrupted;
    CHECK(!fs::exists(run + "/checkpoints/" + left.substr(1, left.size() - 9)));
  }
  const CommandResult rest = run_openmoe(2, tiny_training(run, settings + " --resume"));
  INFO(rest.output);
  REQUIRE(rest.exit_code == 0);
  CHECK(metrics_without_times(run) == expected);
  CHECK(partial().empty());
}

// OPENMOE_KILLS: how often (5 as a rule; 50 is the long form, see README "Train").
TEST_CASE("a job killed again and again at random ends as if nothing had happened", "[kill]") {
  const TemporaryFolder folder;
  const char* const asked = std::getenv("OPENMOE_KILLS");
  const int num_kills = asked != nullptr ? std::atoi(asked) : 5;
  REQUIRE(num_kills > 0);
  const int num_steps = 30 + 12 * num_kills;
  const std::string settings =
      "--ep 2 --set run.checkpoint_every=3 --set run.validate_every=20 "
      "--set run.num_steps=" +
      std::to_string(num_steps);
  const std::string expected = undisturbed(folder / "straight", settings);

  const std::string run = folder / "run";
  const unsigned seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  int kills = 0;
  for (int attempt = 0; kills < num_kills; ++attempt) {
    REQUIRE(attempt < 4 * num_kills);
    BackgroundJob job(2, tiny_training(run, settings + " --resume"), folder / "output");
    const std::int64_t before = num_rows(run);
    // Some are killed while they start, most while they train or save.
    const bool at_start = random() % 8 == 0;
    const bool runs = at_start || job.wait_until([&] { return num_rows(run) != before; });
    BackgroundJob::pause_ms(static_cast<int>(random() % (at_start ? 1000 : 120)));
    if (!runs && job.wait_for_end(0) == 0) break;  // done before all kills were spent
    INFO("attempt " << attempt << ": " << job.output());
    REQUIRE(runs);
    job.kill_all();
    ++kills;
  }
  CHECK(kills == num_kills);
  const CommandResult rest = run_openmoe(2, tiny_training(run, settings + " --resume"));
  INFO(rest.output);
  REQUIRE(rest.exit_code == 0);
  CHECK(metrics_without_times(run) == expected);
  CHECK(text_of(run + "/validation.jsonl") == text_of(folder / "straight/validation.jsonl"));
  // Nothing of an interrupted save stays behind: a run of the last checkpoints and nothing else.
  int folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(run + "/checkpoints")) {
    ++folders;
    CHECK(entry.path().filename().string().starts_with("step-"));
    CHECK(std::filesystem::exists(entry.path() / "manifest.json"));
  }
  CHECK(folders == 2);
  for (const auto& entry : std::filesystem::directory_iterator(run))
    CHECK(entry.path().extension() != ".tmp");
}

TEST_CASE("a step that is not finite is explained, dumped, and skipped where the recipe says so",
          "[nonfinite]") {
#ifndef OPENMOE_DAMAGED_MPI
  WARN("built for a sanitizer, whose library cannot be combined with the one that damages sums");
#else
  const TemporaryFolder folder;
  const auto damaged = [&](const std::string& run, const std::string& more) {
    return run_command(std::string("OPENMOE_DAMAGED_CALL=7 LD_PRELOAD=") + OPENMOE_DAMAGED_MPI +
                       " OMP_NUM_THREADS=1 " + source_path("scripts/mpirun.sh") + " -np 2 " +
                       OPENMOE_TEST_BINARY + " " +
                       tiny_training(run,
                                     "--ep 2 --set run.num_steps=12 "
                                     "--set run.log_every=5 " +
                                         more));
  };
  const std::string run = folder / "skip";
  const CommandResult skipping = damaged(run, "--set run.on_nonfinite=skip");
  INFO(skipping.output);
  REQUIRE(skipping.exit_code == 0);
  CHECK(has(skipping.output, "The update was left out, 1 of at most 10 in a row"));
  CHECK(has(skipping.output, "the first gradient of the backward pass that is not finite is that"));
  std::int64_t skipped = -1;
  int finite = 0;
  for (const json& row : read_json_lines(run + "/metrics.jsonl")) {
    if (row.contains("skipped")) {
      CHECK(skipped == -1);
      skipped = row.at("step").get<std::int64_t>();
      CHECK(row.at("grad_norm").is_null());
    } else {
      CHECK(row.at("loss").is_number());
      finite += row.at("grad_norm").is_number();
    }
  }
  REQUIRE(skipped > 0);
  CHECK(finite >= 3);  // steps 0, 5, 10, 11, unless one of them was skipped

  // The dump is what `data show` prints of that step.
  char name[48];
  std::snprintf(name, sizeof name, "/nonfinite/step-%08lld.jsonl", static_cast<long long>(skipped));
  const CommandResult shown =
      run_openmoe(1, "data show " + run + "/recipe.json --data " + OPENMOE_TEST_SHARDS +
                         " --rows 16 --json --step " + std::to_string(skipped));
  CHECK(shown.exit_code == 0);
  CHECK(shown.output == text_of(run + name));

  const CommandResult stopping = damaged(folder / "stop", "");
  INFO(stopping.output);
  CHECK(stopping.exit_code == 1);
  CHECK(has(stopping.output, "the update was not applied"));
  CHECK(std::filesystem::exists((folder / "stop") + name));
#endif
}

TEST_CASE("skipping ends after the allowed number of steps in a row", "[nonfinite]") {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  const CommandResult result =
      run_openmoe(2, tiny_training(run,
                                   "--ep 2 --set run.on_nonfinite=skip --set run.max_skips=3 "
                                   "--set optimizer.peak_learning_rate=1e30"));
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(has(result.output, "run.max_skips = 3 steps before were skipped"));
  int skipped = 0;
  for (const json& row : read_json_lines(run + "/metrics.jsonl"))
    skipped += row.contains("skipped");
  CHECK(skipped == 3);
  const CommandResult refused =
      run_openmoe(1, tiny_training(folder / "refused",
                                   "--set run.on_nonfinite=skip "
                                   "--set parallel.update_in_backward=true"));
  CHECK(refused.exit_code == 2);
  CHECK(has(refused.output, "run.on_nonfinite"));
}

TEST_CASE("every M-th checkpoint stays besides the newest", "[checkpoints]") {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  const std::string settings =
      "--set run.num_steps=10 --set run.checkpoint_every=1 "
      "--set run.keep_checkpoints=2 --set run.keep_every=";
  const CommandResult result = run_openmoe(1, tiny_training(run, settings + "4"));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(run + "/checkpoints"))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"step-00000004", "step-00000008", "step-00000009",
                                          "step-00000010"});
  const CommandResult refused = run_openmoe(
      1, tiny_training(folder / "refused", "--set run.keep_every=3 --set run.checkpoint_every=2"));
  CHECK(refused.exit_code == 2);
  CHECK(has(refused.output, "a multiple of run.checkpoint_every"));
}

}  // namespace openmoe::test
