// openmoe as it is on emulated devices: what a device computes is what CPUs compute, on any grid,
// in every way of training, over checkpoints of either; and what is wrong is said.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "core/base/check.h"
#include "test/support/catch.h"
#include "test/support/run_command.h"
#include "test/support/tiny_run.h"
#include "test/support/whole_runs.h"

namespace openmoe::test {
namespace {

using nlohmann::json;
constexpr const char* kRecipe = "tiny-released.json";

std::vector<json> train_on_device(int ranks, const std::string& run, const std::string& more,
                                  const std::string& recipe = kRecipe) {
  return train(ranks, recipe, run, "--device cuda " + more, OPENMOE_EMULATED_BINARY);
}

CommandResult run_emulated(int ranks, const std::string& environment,
                           const std::string& arguments) {
  return run_openmoe(ranks, arguments, concat("env ", environment, " ", OPENMOE_EMULATED_BINARY));
}

// Hashes of a checkpoint's files.
std::vector<json> files_of(const std::string& run, const std::string& checkpoint) {
  std::ifstream in(run + "/checkpoints/" + checkpoint + "/manifest.json");
  const json manifest = json::parse(in);
  return manifest.at("files").get<std::vector<json>>();
}

}  // namespace

TEST_CASE("devices lose as CPUs do, on every grid and in every way", "[cuda]") {
  struct Variant {
    int ranks;
    std::int64_t data_ranks;
    std::int64_t micro_batches;
    const char* options;
  };
  const std::string recipe = GENERATE("tiny-released.json", "tiny-paper.json");
  std::vector<Variant> variants = {
      {2, 2, 1, "--ep 2 --set parallel.exchange_parts=2"},
      {4, 2, 2, "--ep 2 --tp 2 --set parallel.exchange_parts=2 --set parallel.recompute=ffn"}};
  if (recipe == "tiny-released.json")
    variants.insert(
        variants.end(),
        {{1, 1, 2, "--set parallel.recompute=block"},
         {2, 2, 2, "--set parallel.reduction_bucket_kb=8"},
         {2, 1, 1, "--tp 2 --collectives staged"},
         {4, 4, 2, "--ep 2 --set parallel.shard_update=true"},
         {4, 4, 1, "--ep 4 --set parallel.exchange=two_level --set parallel.ranks_per_node=2"},
         {4, 4, 1, "--ep 4 --set parallel.exchange=fixed_capacity --collectives staged"},
         {4, 2, 1, "--tp 2 --set parallel.shard_update=true"},
         {4, 2, 1, "--ep 2 --tp 2 --set parallel.update_in_backward=true"}});
  constexpr std::int64_t kRows = 8;  // of a batch
  const TemporaryFolder folder;
  const std::string steps = concat(
      " --set run.num_steps=2 --set run.validate_every=0 --set routing.group_tokens=64 "
      "--set data.batch_rows=",
      kRows, " ");
  const auto reference = train(1, recipe, folder / "reference", steps + "--device cpu");
  REQUIRE(reference.size() == 2);
  int run = 0;
  for (const Variant& variant : variants) {
    const std::string options =
        concat(variant.options, steps, "--set parallel.micro_batch_rows=",
               variant.micro_batches == 1 ? 0 : kRows / variant.data_ranks / variant.micro_batches);
    INFO(recipe << " on " << variant.ranks << " devices, " << options);
    check_same_run(train_on_device(variant.ranks, folder / std::to_string(++run), options, recipe),
                   reference);
  }
}

TEST_CASE("the schedule of blocks and threads changes no bit of a training", "[cuda]") {
  const TemporaryFolder folder;
  const std::string steps =
      "--set run.num_steps=2 --set run.validate_every=0 --set data.batch_rows=4 --ep 2";
  const auto first = without_times(train_on_device(2, folder / "0", steps));
  for (const std::string seed : {"1", "2"}) {
    INFO("seed " << seed);
    const CommandResult result =
        run_emulated(2, "OPENMOE_EMULATION_SEED=" + seed,
                     train_arguments(kRecipe, folder / seed, "--device cuda " + steps));
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    CHECK(without_times(read_json_lines(folder / seed + "/metrics.jsonl")) == first);
  }
}

TEST_CASE("a run goes on from a CPU to a device and back", "[cuda]") {
  const TemporaryFolder folder;
  const std::string rest =
      " --set run.validate_every=0 --set run.replica_check_every=2 --set data.batch_rows=4";
  const auto straight =
      train(1, kRecipe, folder / "straight", "--device cpu --set run.num_steps=6" + rest);
  const std::string run = folder / "changing";
  train(1, kRecipe, run, "--device cpu --set run.num_steps=2" + rest);
  train_on_device(4, run, "--set run.num_steps=4 --ep 2 --tp 2 --resume" + rest);
  check_same_run(
      train(2, kRecipe, run, "--device cpu --set run.num_steps=6 --ep 2 --resume" + rest),
      straight);
}

TEST_CASE("checkpoints in the background hold what those at once hold", "[cuda]") {
  const TemporaryFolder folder;
  const std::string options =
      "--ep 2 --set run.num_steps=3 --set run.checkpoint_every=1 --set run.keep_checkpoints=4 "
      "--set run.validate_every=0 --set data.batch_rows=4";
  const auto at_once = without_times(train_on_device(2, folder / "at-once", options));
  const auto background = without_times(train_on_device(
      2, folder / "background", options + " --set run.checkpoint_in_background=true"));
  CHECK(background == at_once);
  for (const std::string step : {"step-00000001", "step-00000002", "step-00000003"}) {
    INFO(step);
    CHECK(files_of(folder / "background", step) == files_of(folder / "at-once", step));
  }
}

TEST_CASE("devices divide the f32 values of rounded weights", "[cuda]") {
  const TemporaryFolder folder;
  const std::string options =
      "--set run.num_steps=2 --set run.validate_every=0 --set data.batch_rows=4 "
      "--set run.compute_type=bf16 --set run.replica_check_every=1";
  const auto whole = train_on_device(2, folder / "whole", options);
  const auto divided =
      train_on_device(2, folder / "divided", options + " --set parallel.shard_update=true");
  REQUIRE(divided.size() == 2);
  for (std::size_t i = 0; i < divided.size(); ++i)
    CHECK(divided[i].at("loss").get<double>() ==
          Approx(whole[i].at("loss").get<double>()).epsilon(1e-4));
}

TEST_CASE("a step on devices is traced and profiled", "[cuda]") {
  const TemporaryFolder folder;
  const CommandResult result = run_emulated(
      2, "OPENMOE_EMULATION_DEVICES=2",
      train_arguments(kRecipe, folder / "run",
                      "--device cuda --ep 2 --set run.num_steps=2 --set run.validate_every=0 "
                      "--set run.profile=true --set run.straggler_every=2 --trace-step 1 --trace " +
                          folder / "trace"));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK(result.output.find("trace of step 1 in ") != std::string::npos);
  CHECK(result.output.find("grouped_matmul_backward_weight ") != std::string::npos);
  for (const std::string rank : {"0", "1"}) {
    std::ifstream in(folder / ("trace/rank-0000" + rank + ".json"));
    const json file = json::parse(in);
    const double end = 1e3 * file.at("otherData").at("step_ms").get<double>();
    std::map<std::string, std::pair<double, double>> spans;  // the last of each name
    for (const json& event : file.at("traceEvents")) {
      if (event.at("ph") != "X") continue;
      const double begin = event.at("ts"), length = event.at("dur");
      CHECK(0.0 <= begin);
      CHECK(0.0 <= length);
      CHECK(begin + length <= end + 1.0);
      spans[event.at("name")] = {begin, begin + length};
    }
    for (const char* name : {"grouped_matmul_forward", "expert: start of all_to_all_rows",
                             "expert: wait for all_to_all_rows", "data: all_reduce_sum of f32",
                             "optimizer", "backward of layer 0", "adafactor_factored"})
      REQUIRE(spans.contains(name));
    CHECK(spans["backward of layer 0"].second <= spans["adafactor_factored"].first);
  }
  std::ifstream metrics(folder / "run/metrics.jsonl");
  const std::string lines{std::istreambuf_iterator<char>(metrics), {}};
  CHECK(lines.find("\"slowest_rank\"") != std::string::npos);
}

TEST_CASE("routing is observed on devices as on CPUs", "[cuda]") {
  const TemporaryFolder folder;
  train_on_device(1, folder / "run",
                  "--set run.num_steps=1 --set run.validate_every=0 --set data.batch_rows=4");
  std::string tables[2];
  for (const bool on_device : {false, true}) {
    const std::string out = folder / (on_device ? "device" : "cpu");
    const CommandResult result =
        run_emulated(on_device ? 2 : 1, "OPENMOE_EMULATION_DEVICES=2",
                     concat("analyze ", folder / "run", " --data ", OPENMOE_TEST_SHARDS,
                            " --sources wikipedia --positions 256 --out ", out,
                            on_device ? " --device cuda" : " --device cpu"));
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    std::ifstream load(out + "/expert_load.csv");
    tables[on_device].assign(std::istreambuf_iterator<char>(load), {});
  }
  CHECK_FALSE(tables[0].empty());
  CHECK(tables[1] == tables[0]);
}

TEST_CASE("what a job lacks on devices is said before it starts", "[cuda]") {
  const TemporaryFolder folder;
  struct Case {
    int ranks;
    const char* environment;
    const char* options;
    int exit_code;
    std::vector<std::string> says;
  };
  const Case cases[] = {
      {1, "OPENMOE_EMULATION_DEVICES=0", "", 2, {"no CUDA device is visible", "--device cpu"}},
      {1, "OPENMOE_EMULATION_DRIVER=11000", "", 2, {"CUDA 11.0", "older", "--device cpu"}},
      {1, "OPENMOE_EMULATION_DRIVER=0", "", 2, {"no NVIDIA driver", "--device cpu"}},
      {1, "OPENMOE_EMULATION_ARCH=70", "", 2, {"sm_70, allowed: sm_80", "--device cpu"}},
      {2,
       "OPENMOE_EMULATION_DEVICES=1",
       "",
       2,
       {"ranks 0 and 1 are both on GPU-00000000-0000-", "device of its own", "nvidia-smi -L",
        "--collectives staged"}},
      {1, "OPENMOE_EMULATION_DEVICES=1", "--set model.head_dim=258", 2, {"model.head_dim", "256"}},
      {4,
       "OPENMOE_EMULATION_DEVICES=3",
       "",
       2,
       {"device 3 was asked for, this rank sees 3", "no more ranks per host"}},
      {1,
       "OPENMOE_EMULATION_MEMORY_MB=8",
       "",
       1,
       {"cannot allocate", "GiB are free", "openmoe plan", "memory of rank 0", "workspace",
        "activations"}}};
  int run = 0;
  for (const Case& c : cases) {
    const CommandResult result =
        run_emulated(c.ranks, c.environment,
                     train_arguments(kRecipe, folder / std::to_string(++run),
                                     concat("--device cuda ", c.options)));
    INFO(c.environment << "\n" << result.output);
    CHECK(result.exit_code == c.exit_code);
    for (const std::string& words : c.says) {
      INFO(words);
      CHECK(result.output.find(words) != std::string::npos);
    }
  }
}

TEST_CASE("a device that fails alone does not wait for the others", "[cuda]") {
  const TemporaryFolder folder;
  const CommandResult result = run_openmoe(
      2, train_arguments(kRecipe, folder / "run", "--device cuda --ep 2"),
      concat("sh -c 'export OPENMOE_EMULATION_TIMEOUT_S=10; "
             "[ $OMPI_COMM_WORLD_RANK = 0 ] || export OPENMOE_EMULATION_MEMORY_MB=34; exec ",
             OPENMOE_EMULATED_BINARY, " \"$@\"' sh"));
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(result.output.find("openmoe: error on rank 1: cannot allocate") != std::string::npos);
}

TEST_CASE("a transfer that fails is named with its rank, and ends the job", "[cuda]") {
  const TemporaryFolder folder;
  const CommandResult result = run_openmoe(
      2, train_arguments(kRecipe, folder / "run", "--device cuda --ep 2"),
      concat("sh -c '[ $OMPI_COMM_WORLD_RANK = 0 ] || export OPENMOE_EMULATION_NCCL_FAULT=ncclSend;"
             " exec ",
             OPENMOE_EMULATED_BINARY, " \"$@\"' sh"));
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(result.output.find("openmoe: error on rank 1: NCCL: ncclSend failed on ") !=
        std::string::npos);
  CHECK(result.output.find("ncclSend fails as the environment says") != std::string::npos);
  CHECK(result.output.find("--collectives staged does without NCCL") != std::string::npos);
}

TEST_CASE("auto takes devices where every rank sees one, and says so", "[cuda]") {
  const TemporaryFolder folder;
  const std::string steps = "--set run.num_steps=1 --set run.validate_every=0";
  const CommandResult with = run_emulated(2, "OPENMOE_EMULATION_DEVICES=2",
                                          train_arguments(kRecipe, folder / "with", steps));
  INFO(with.output);
  CHECK(with.exit_code == 0);
  CHECK(with.output.find("% peak") == std::string::npos);  // that of the CPU says nothing here
  CHECK(with.output.find("device      cuda: ") != std::string::npos);
  CHECK(with.output.find("one of 2") != std::string::npos);
  // For three ranks.
  const std::pair<std::string, std::string> fewer[] = {
      {"0", ""},
      {"1", "auto computes on CPUs: ranks 0 and 1 are both on GPU-"},
      {"2", "auto computes on CPUs: rank 2 sees no GPU of its own"}};
  for (const auto& [devices, reason] : fewer) {
    const CommandResult without =
        run_emulated(3, "OPENMOE_EMULATION_DEVICES=" + devices,
                     train_arguments(kRecipe, folder / ("without" + devices),
                                     steps + " --set data.batch_rows=12"));
    INFO(without.output);
    CHECK(without.exit_code == 0);
    CHECK(without.output.find("device      cpu: ") != std::string::npos);
    CHECK(without.output.find(reason) != std::string::npos);
    CHECK((without.output.find("auto computes on CPUs") == std::string::npos) == reason.empty());
  }
}

}  // namespace openmoe::test
