// Jobs in which something goes wrong with one rank, and jobs whose loss jumps.
#include <algorithm>
#include <cstdlib>
#include <set>

#include "apps/loss_spikes.h"
#include "apps/step_trace.h"
#include "apps/straggler.h"
#include "test/support/background_job.h"
#include "test/support/catch.h"
#include "test/support/manual_clock.h"
#include "test/support/tiny_run.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

bool has(const std::string& text, const std::string& phrase) {
  return text.find(phrase) != std::string::npos;
}

CommandResult train(int ranks, const std::string& run, const std::string& more) {
  const CommandResult result = run_openmoe(ranks, tiny_training(run, more));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return result;
}

std::vector<json> metrics(const std::string& run) {
  return without_times(read_json_lines(run + "/metrics.jsonl"));
}

// Sends a signal to one rank of a long job of four and returns what the job printed.
std::string disturb(const std::string& run, int rank, int signal, const std::string& settings,
                    int& exit_code, double& seconds, const std::string& environment = "") {
  BackgroundJob job(4, tiny_training(run, "--ep 2 --set run.num_steps=100000 " + settings),
                    run + ".txt", environment);
  REQUIRE(job.wait_until([&] { return num_rows(run) >= 5; }));
  const pid_t target = job.pid_of_rank(rank);
  REQUIRE(target > 0);
  BackgroundJob::pause_ms(2000);  // some heartbeats, so that what is known of it is a step
  const auto begin = std::chrono::steady_clock::now();
  REQUIRE(kill(target, signal) == 0);
  exit_code = job.wait_for_end(60);
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return job.output();
}

}  // namespace

TEST_CASE("a rank that stops is named with its last collective and the job ends", "[watchdog]") {
  const TemporaryFolder folder;
  for (const int stopped : {2, 0}) {
    int exit_code = 0;
    double seconds = 0.0;
    const std::string output = disturb(folder / ("run" + std::to_string(stopped)), stopped, SIGSTOP,
                                       "--set run.watchdog_seconds=4", exit_code, seconds);
    INFO(output);
    CHECK(exit_code == 1);
    CHECK(seconds < 30.0);
    CHECK(has(output, "the job is stuck: rank " + std::to_string(stopped) + " (dp " +
                          std::to_string(stopped / 2) + ", ep 0, tp 0), step "));
    CHECK(has(output, "no sign of life for "));
    CHECK(has(output, " of group "));
  }
}

TEST_CASE("a killed rank ends the whole job", "[watchdog]") {
  const TemporaryFolder folder;
  int exit_code = 0;
  double seconds = 0.0;
  const std::string output = disturb(folder / "run", 1, SIGKILL, "", exit_code, seconds);
  INFO(output);
  CHECK(exit_code > 0);
  CHECK(seconds < 30.0);
  std::printf("a killed rank ended the job after %.1f s\n", seconds);
}

TEST_CASE("a killed rank ends the job where the launcher lets the others go on", "[watchdog]") {
  const TemporaryFolder folder;
  int exit_code = 0;
  double seconds = 0.0;
  const std::string output = disturb(folder / "run", 1, SIGKILL, "", exit_code, seconds,
                                     "OMPI_MCA_orte_enable_recovery=1 ");
  INFO(output);
  CHECK(exit_code != -1);  // it ended; what such a launcher returns says nothing
  CHECK(seconds < 30.0);
  CHECK(has(output, "the job is stuck: rank 1 (dp 0, ep 1, tp 0), step "));
}

TEST_CASE("a rank whose parameters differ from its replicas' is found", "[replicas]") {
#ifndef OPENMOE_DAMAGED_MPI
  WARN("built for a sanitizer, whose library cannot be combined with the one that damages sums");
#else
  const TemporaryFolder folder;
  const auto damaged = [&](const std::string& run, const std::string& more) {
    return run_command(std::string("OPENMOE_DAMAGED_CALL=4 OPENMOE_DAMAGED_RANK=2 LD_PRELOAD=") +
                       OPENMOE_DAMAGED_MPI + " OMP_NUM_THREADS=1 " +
                       source_path("scripts/mpirun.sh") + " -np 4 " + OPENMOE_TEST_BINARY + " " +
                       tiny_training(run, "--ep 2 --set run.num_steps=8 " + more));
  };
  const CommandResult found = damaged(folder / "found", "--set run.replica_check_every=4");
  INFO(found.output);
  CHECK(found.exit_code == 1);
  CHECK(has(found.output, "after step 3: "));
  CHECK(has(found.output, "is not the same on ranks that share it: rank 2 differs from rank"));
  const CommandResult unseen = damaged(folder / "unseen", "--set run.replica_check_every=0");
  CHECK(unseen.exit_code == 0);
#endif
}

TEST_CASE("the slowest rank is the one that computes longest, beside the median", "[straggler]") {
  const Straggler third = slowest_of({1.0, 1.0, 3.0, 1.0});
  CHECK(third.world_rank == 2);
  CHECK(third.seconds == 3.0);
  CHECK(third.share() == 3.0);
  CHECK(third.is_notable());
  const Straggler second = slowest_of({1.0, 1.2});
  CHECK(second.world_rank == 1);
  CHECK(second.share() == 1.2);  // of two ranks the faster one is the median
  CHECK(!second.is_notable());
  CHECK(slowest_of({0.0}).share() == 1.0);
}

TEST_CASE("waits in collectives are added up where they count", "[straggler]") {
  ManualClock::Hand hand;
  WaitClock waiting(std::make_unique<ManualClock>(hand));
  const auto wait = [&](double seconds) {
    waiting.begin_collective({});
    hand.now += seconds;
    waiting.end_collective({});
    hand.now += 10.0;
  };
  wait(1.0);  // outside
  waiting.begin_counting();
  wait(2.0);
  wait(4.0);
  waiting.end_counting();
  wait(8.0);
  CHECK(waiting.take_seconds() == 6.0);
  CHECK(waiting.take_seconds() == 0.0);
  std::size_t most = 0;
  for (int step = 0; step < 100; ++step) {
    waiting.begin_counting();
    for (int i = 0; i < 300; ++i) wait(0.5);
    most = std::max(most, hand.num_places);
    waiting.end_counting();
  }
  CHECK(most < 2 * 300 * 100);
  CHECK(waiting.take_seconds() == 100 * 300 * 0.5);
}

TEST_CASE("the slowest rank stands in the metrics of every interval", "[straggler]") {
  const TemporaryFolder folder;
  train(2, folder / "run", "--ep 2 --set run.num_steps=12 --set run.straggler_every=5");
  for (const json& row : read_json_lines(folder / "run/metrics.jsonl")) {
    const bool is_end = row.at("step") == 4 || row.at("step") == 9;
    CHECK(row.contains("slowest_rank") == is_end);
    if (!is_end) continue;
    CHECK(row.at("slowest_rank").get<int>() <= 1);
    CHECK(row.at("slowest_rank_share").get<double>() >= 1.0);
  }
}

TEST_CASE("a loss that stands out is a spike, one of another phase is not", "[spikes]") {
  RunConfig run;
  run.on_spike = OnSpike::skip;
  run.spike_window = 4;
  run.spike_z = 3.0;
  run.spike_batches = 2;
  LossSpikes spikes(run);
  spikes.enter_phase(0);
  for (const double loss : {4.0, 5.0, 4.0}) spikes.accept(loss);
  CHECK(spikes.z_score(100.0) == 0.0);  // too few to judge
  spikes.accept(5.0);
  // mean 4.5, deviation sqrt(4 * 0.25 / 3) = 0.57735
  CHECK(spikes.z_score(6.0) == Approx(1.5 / 0.57735027));
  CHECK(!spikes.is_spike(6.0));
  CHECK(spikes.is_spike(6.3));
  CHECK(!spikes.is_spike(1.0));  // better than expected
  LossSpikes resumed(run);
  resumed.restore(spikes.state());
  CHECK(resumed.z_score(6.0) == spikes.z_score(6.0));
  resumed.leave_out_until(20);
  CHECK(resumed.leaves_out(19));
  CHECK(resumed.leaves_out(20));
  CHECK(!resumed.leaves_out(18));
  resumed.restore(spikes.state());  // a rewind
  CHECK(resumed.leaves_out(20));
  spikes.enter_phase(1);
  CHECK(spikes.z_score(100.0) == 0.0);
  LossSpikes flat(run);
  for (int i = 0; i < 4; ++i) flat.accept(2.0);
  CHECK(flat.z_score(2.002) == Approx(1.0));
}

TEST_CASE("spikes are skipped or rewound from, and nothing depends on interruptions", "[spikes]") {
  const TemporaryFolder folder;
  // Natural noise is enough with so low a threshold.
  const std::string common =
      "--ep 2 --set run.spike_z=1.5 --set run.spike_window=4 --set run.checkpoint_every=7 "
      "--set run.max_skips=50 --set run.on_spike=";
  const std::string whole = " --set run.num_steps=60";
  const auto skipped = [](const std::vector<json>& rows) {
    std::set<std::int64_t> steps;
    for (const json& row : rows)
      if (row.contains("skipped")) steps.insert(row.at("step").get<std::int64_t>());
    return steps;
  };
  const CommandResult skipping = train(2, folder / "skip", common + "skip" + whole);
  const std::vector<json> expected = metrics(folder / "skip");
  REQUIRE(expected.size() == 60);
  const std::set<std::int64_t> spikes = skipped(expected);
  REQUIRE(!spikes.empty());
  CHECK(has(skipping.output, "The update was left out, 1 of at most 50 in a row"));
  for (const json& row : expected)
    if (row.contains("skipped")) CHECK(row.at("spike_z").get<double>() > 1.5);

  // Leaving out the one batch of a spike is the same whether its update was not made or was undone.
  // A step between a checkpoint and a spike is done twice, and traced into one file.
  const auto again = std::find_if(spikes.begin(), spikes.end(), [&](std::int64_t spike) {
    return spike % 7 != 0 && !spikes.contains(spike - 1);
  });
  REQUIRE(again != spikes.end());
  const std::string traced = "step " + std::to_string(*again - 1);
  const std::string trace = " --trace " + (folder / "trace") + " --trace-step ";
  const CommandResult rewinding =
      train(2, folder / "rewind", common + "rewind" + whole + trace + std::to_string(*again - 1));
  CHECK(has(rewinding.output, "trace of " + traced + " in "));
  const json file = json::parse(std::ifstream(folder / "trace/rank-00000.json"));
  const json& events = file.at("traceEvents");
  CHECK(std::count_if(events.begin(), events.end(),
                      [&](const json& event) { return event.at("name") == traced; }) == 1);
  const std::vector<json> rewound = metrics(folder / "rewind");
  REQUIRE(rewound.size() == 60);
  CHECK(skipped(rewound) == spikes);
  CHECK(has(rewinding.output, ". Back to "));
  for (std::size_t i = 0; i < rewound.size(); ++i)
    if (!rewound[i].contains("skipped")) CHECK(rewound[i] == expected[i]);

  // Stopped between a spike and the next checkpoint, and in the middle of a window.
  for (const std::string policy : {"skip", "rewind"}) {
    const std::string run = folder / (policy + "-resumed");
    const std::string settings = common + policy + " ";
    train(2, run, settings + "--set run.num_steps=" + std::to_string(*spikes.begin() + 2));
    train(2, run, settings + "--set run.num_steps=41 --resume");
    train(2, run, settings + "--resume" + whole);
    CHECK(metrics(run) == (policy == "skip" ? expected : rewound));
  }

  const CommandResult wide_run = train(2, folder / "wide",
                                       common + "rewind --set run.spike_batches=3" + whole + trace +
                                           std::to_string(*spikes.begin()));
  CHECK(
      has(wide_run.output, "which --trace asks for, is left out; its trace is of the time before"));
  const std::vector<json> wide = metrics(folder / "wide");
  const std::set<std::int64_t> left_out = skipped(wide);
  const std::int64_t first = *spikes.begin();
  for (std::int64_t step = std::max<std::int64_t>(first - 2, first / 7 * 7); step <= first; ++step)
    CHECK(left_out.contains(step));

  const CommandResult endless =
      run_openmoe(2, tiny_training(folder / "endless",
                                   "--ep 2 --set run.on_spike=skip --set run.max_skips=1 "
                                   "--set run.spike_z=0.5 --set run.spike_window=4 "
                                   "--set optimizer.peak_learning_rate=1"));
  INFO(endless.output);
  CHECK(endless.exit_code == 1);
  CHECK(has(endless.output, "run.max_skips = 1 steps before were skipped"));
}

TEST_CASE("time is covered and exposed as intervals say", "[trace]") {
  CHECK(covered_seconds({{0, 2}, {1, 3}, {5, 6}}) == Approx(4.0));
  CHECK(exposed_seconds({{0, 2}, {4, 6}}, {{1, 5}}) == Approx(2.0));
  CHECK(exposed_seconds({{1, 2}}, {{0, 3}}) == Approx(0.0).margin(1e-12));
  CHECK(exposed_seconds({{1, 2}}, {}) == Approx(1.0));
}

TEST_CASE("a step is traced on every rank, and only that step", "[trace]") {
  const TemporaryFolder folder;
  const std::string trace = folder / "trace";
  const CommandResult result =
      train(2, folder / "run", "--ep 2 --set run.num_steps=5 --trace " + trace + " --trace-step 3");
  CHECK(has(result.output, "trace of step 3 in "));
  CHECK(has(result.output, "% of the exchange"));
  for (int rank = 0; rank < 2; ++rank) {
    std::ifstream in(trace + "/rank-0000" + std::to_string(rank) + ".json");
    const json file = json::parse(in);
    std::set<std::string> names;
    double step_end = 0.0;
    for (const json& event : file.at("traceEvents"))
      if (event.at("name") == "step 3") step_end = event.at("dur").get<double>();
    REQUIRE(step_end > 0.0);
    std::vector<TimeSpan> exchange;
    for (const json& event : file.at("traceEvents")) {
      CHECK(event.at("pid") == rank);
      if (event.at("ph") == "M") continue;
      CHECK(event.at("ph") == "X");
      CHECK(event.at("ts").get<double>() >= 0.0);
      CHECK(event.at("ts").get<double>() + event.at("dur").get<double>() <= step_end + 1.0);
      const std::string name = event.at("name");
      names.insert(name);
      if (event.at("cat") == "rows under way") {
        const double begin = event.at("ts");
        exchange.emplace_back(begin, begin + event.at("dur").get<double>());
      }
    }
    for (const char* name : {"forward of layer 0", "backward of layer 1", "attention", "experts",
                             "head", "gradient reduction", "optimizer", "grouped_matmul_forward",
                             "expert: start of all_to_all_rows", "expert: wait for all_to_all_rows",
                             "expert: all_to_all", "data: all_reduce_sum of f32"})
      CHECK(names.contains(name));
    const json& summary = file.at("otherData");
    CHECK(exchange.size() == 5);  // counts, and rows there and back in both passes
    CHECK(summary.at("exchange_ms").get<double>() ==
          Approx(1e-3 * covered_seconds(exchange)).epsilon(0.01));
    CHECK(summary.at("exposed_exchange_ms").get<double>() <=
          summary.at("exchange_ms").get<double>() + 1e-6);
    CHECK(summary.at("step_ms").get<double>() == Approx(1e-3 * step_end));
  }
  // Of the time that rows are under way, ops hide some.
  const auto is_hidden = [&](const std::string& name, const std::string& options) {
    train(2, folder / name, "--ep 2 --set run.num_steps=3 --trace " + folder / name + options);
    std::ifstream in(folder / (name + "/rank-00000.json"));
    const json file = json::parse(in);
    std::vector<TimeSpan> under_way;
    for (const json& event : file.at("traceEvents"))
      if (event.at("ph") == "X" && event.at("cat") == "rows under way") {
        const double begin = event.at("ts");
        under_way.emplace_back(begin, begin + event.at("dur").get<double>());
      }
    std::set<std::string> hiding;
    for (const json& event : file.at("traceEvents")) {
      if (event.at("ph") != "X" || event.at("cat") != "ops") continue;
      const double begin = event.at("ts"), end = begin + event.at("dur").get<double>();
      for (const TimeSpan& span : under_way)
        if (span.first <= begin && end <= span.second) hiding.insert(event.at("name"));
    }
    const json& summary = file.at("otherData");
    CHECK((summary.at("exposed_exchange_ms").get<double>() <
           0.999 * summary.at("exchange_ms").get<double>()) == !hiding.empty());
    return hiding;
  };
  CHECK(is_hidden("whole", "").empty());
  CHECK(is_hidden("parts", " --set parallel.exchange_parts=2").contains("grouped_matmul_forward"));
  CHECK(is_hidden("block", " --set model.parallel_block=true --set model.residual_ffn=parallel")
            .contains("attention_forward"));

  const CommandResult refused =
      run_openmoe(1, tiny_training(folder / "refused",
                                   "--set run.num_steps=5 --trace " + trace + " --trace-step 9"));
  CHECK(refused.exit_code == 2);
  CHECK(has(refused.output, "--trace-step: found 9, allowed: a step of this process, 0 to 4"));
}

}  // namespace openmoe::test
