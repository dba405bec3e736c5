// Runs that are asked to stop, or killed, and go on: nothing of the result shows it.
#include <cstdlib>
#include <random>

#include "test/support/background_job.h"
#include "test/support/catch.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

std::string train_arguments(const std::string& run, const std::string& more) {
  return "train " + source_path("test/recipes/tiny-released.json") + " --data " +
         OPENMOE_TEST_SHARDS + " --out " + run + " " + more;
}

// The text of metrics.jsonl without what a clock decides.
std::string metrics_without_times(const std::string& run) {
  std::string text;
  for (json& row : read_json_lines(run + "/metrics.jsonl")) {
    for (const char* key : {"tokens_per_s", "step_seconds", "slowest_rank", "slowest_rank_share"})
      row.erase(key);
    text += row.dump() + "\n";
  }
  return text;
}

std::string text_of(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::int64_t num_rows(const std::string& run) {
  const std::string text = text_of(run + "/metrics.jsonl");
  return std::count(text.begin(), text.end(), '\n');
}

std::string undisturbed(const std::string& run, const std::string& settings) {
  const CommandResult result = run_openmoe(2, train_arguments(run, settings));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return metrics_without_times(run);
}

bool has(const std::string& text, const std::string& phrase) {
  return text.find(phrase) != std::string::npos;
}

}  // namespace

TEST_CASE("a signal to one rank, or to mpirun, saves and stops the job, which then goes on",
          "[signals]") {
  const TemporaryFolder folder;
  const std::string settings = "--ep 2 --set run.num_steps=150 --set run.validate_every=50";
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
    BackgroundJob job(2, train_arguments(run, settings + (first ? "" : " --resume")),
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
  const CommandResult rest = run_openmoe(2, train_arguments(run, settings + " --resume"));
  INFO(rest.output);
  CHECK(rest.exit_code == 0);
  CHECK(metrics_without_times(run) == expected);
  CHECK(text_of(run + "/validation.jsonl") == text_of(folder / "straight/validation.jsonl"));
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
    BackgroundJob job(2, train_arguments(run, settings + " --resume"), folder / "output");
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
  const CommandResult rest = run_openmoe(2, train_arguments(run, settings + " --resume"));
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

}  // namespace openmoe::test
