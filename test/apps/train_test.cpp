// Whole training runs through the binary: the grid changes nothing, resuming changes nothing, bad
// input ends every rank.
#include "core/base/check.h"
#include "test/support/catch.h"
#include "test/support/run_command.h"
#include "test/support/tiny_run.h"
#include "test/support/whole_runs.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

}  // namespace

// The whole curve; every grid and way, for some steps, are in the test after the next.
TEST_CASE("the grid does not change the loss curve", "[grid]") {
  struct Variant {
    int ranks;
    const char* options;
  };
  const Variant variants[] = {
      {2, "--ep 2"},
      {8, "--ep 2 --tp 2"},
      {4, "--ep 2 --set parallel.reduction_bucket_kb=8 --set parallel.micro_batch_rows=2"},
      {4, "--ep 2 --set parallel.shard_update=true"},
      {2, "--tp 2 --set parallel.micro_batch_rows=4 --set parallel.recompute=ffn"},
  };
  const std::string recipe = GENERATE("tiny-released.json", "tiny-paper.json");
  const TemporaryFolder folder;
  const auto reference = train(1, recipe, folder / "reference");
  REQUIRE(reference.size() == 30);
  CHECK(reference[0].at("dropped_second").get<double>() > 0.0);
  if (recipe == "tiny-released.json")  // its UL2 rows are padded, as the original's were
    CHECK(reference[0].at("real_tokens") < reference[0].at("positions"));
  int run = 0;
  for (const auto& [ranks, options] : variants) {
    INFO(recipe << " on " << ranks << " ranks, " << options);
    check_same_run(train(ranks, recipe, folder / ("run" + std::to_string(++run)), options),
                   reference);
  }
  const std::string tied = "--set model.tied_embedding=true";
  const auto tied_reference = train(1, recipe, folder / "tied", tied);
  check_same_run(
      train(2, recipe, folder / "within", tied + " --tp 2 --set parallel.update_in_backward=true"),
      tied_reference);
  check_same_run(
      train(4, recipe, folder / "divided", tied + " --ep 2 --set parallel.shard_update=true"),
      tied_reference);
}

// With bf16 the f32 values are divided too. What differs is the order of sums.
TEST_CASE("divided values and statistics train, resume and start as whole ones do", "[grid]") {
  const TemporaryFolder folder;
  const std::string recipe = "tiny-released.json";
  const std::string common =
      "--set run.compute_type=bf16 --set run.replica_check_every=4 --set run.num_steps=";
  const std::string divided = " --set parallel.shard_update=true";
  int run = 0;
  const auto next = [&] { return folder / std::to_string(++run); };
  for (const auto& [ranks, options] : {std::pair<int, std::string>{4, "12 --ep 2"},
                                       {8, "12 --ep 2 --tp 2"},
                                       {4, "12 --ep 2 --set model.tied_embedding=true"}}) {
    INFO(ranks << " ranks, " << options);
    check_same_run(train(ranks, recipe, next(), common + options + divided),
                   train(ranks, recipe, next(), common + options));
  }

  const std::string grid = " --ep 2 --set run.checkpoint_every=6";
  const std::string straight = next(), split = next();
  const auto expected = without_times(train(4, recipe, straight, common + "12" + grid + divided));
  train(4, recipe, split,
        common + "6" + grid + divided + " --set run.checkpoint_in_background=true");
  namespace fs = std::filesystem;
  const std::string elsewhere = next(), whole = next();
  fs::copy(split, elsewhere, fs::copy_options::recursive);
  fs::copy(split, whole, fs::copy_options::recursive);
  CHECK(without_times(train(4, recipe, split, common + "12" + grid + divided + " --resume")) ==
        expected);
  check_same_run(train(4, recipe, whole, common + "12" + grid + " --resume"), expected);
  // The last checkpoint is one of whole values, the first of divided ones; both start other runs.
  const std::string from = " --set start.optimizer=continued --from ";
  check_same_run(train(4, recipe, next(), common + "14" + grid + divided + from + whole),
                 train(4, recipe, next(), common + "14" + grid + from + whole));

  const std::string dense = next();
  train(1, recipe, dense, "--set model.moe_interval=0 --set run.num_steps=3");
  const std::string upcycled = common + "6" + grid + " --set start.upcycle=true --from " + dense;
  check_same_run(train(4, recipe, next(), upcycled + divided), train(4, recipe, next(), upcycled));
}

TEST_CASE("every way of training gives the same losses on every grid", "[grid]") {
  struct Grid {
    int ranks;
    std::int64_t data_ranks;
    const char* options;
  };
  const Grid grids[] = {{1, 1, ""},
                        {2, 2, ""},
                        {2, 2, "--ep 2"},
                        {2, 1, "--tp 2"},
                        {4, 4, "--ep 2"},
                        {4, 2, "--ep 2 --tp 2"},
                        {8, 4, "--ep 2 --tp 2"}};
  struct Way {
    std::int64_t micro_batches;
    const char* options;
  };
  const Way ways[] = {{1, ""},
                      {3, ""},
                      {3, "--set parallel.recompute=block"},
                      {3, "--set parallel.shard_update=true"},
                      {3, "--set parallel.reduction_bucket_kb=8"},
                      {3, "--set parallel.exchange=fixed_capacity"},
                      {3, "--set parallel.exchange=two_level --set parallel.ranks_per_node=1"},
                      {3, "--set parallel.exchange_parts=2"}};
  constexpr std::int64_t kRows = 24;  // of a batch
  const std::string recipe = GENERATE("tiny-released.json", "tiny-paper.json");
  const TemporaryFolder folder;
  const std::string steps = concat(
      " --set run.num_steps=4 --set run.validate_every=0 --set data.batch_rows=", kRows, " ");
  const auto reference = train(1, recipe, folder / "reference", steps);
  REQUIRE(reference.size() == 4);
  int run = 0;
  for (const Grid& grid : grids)
    for (const Way& way : ways) {
      const std::string options =
          concat(grid.options, steps,
                 "--set parallel.micro_batch_rows=", kRows / grid.data_ranks / way.micro_batches,
                 " ", way.options);
      INFO(recipe << " on " << grid.ranks << " ranks, " << options);
      check_same_run(train(grid.ranks, recipe, folder / std::to_string(++run), options), reference);
    }
}

TEST_CASE("the way that rows travel changes no bit", "[grid]") {
  const TemporaryFolder folder;
  const std::string steps = "--ep 4 --set run.num_steps=8 --set parallel.exchange=";
  const auto direct = train(4, "tiny-released.json", folder / "direct", steps + "direct");
  int run = 0;
  for (const std::string kind :
       {"fixed_capacity", "two_level --set parallel.ranks_per_node=2", "two_level"}) {
    INFO(kind);
    const auto other = train(4, "tiny-released.json", folder / std::to_string(++run), steps + kind);
    CHECK(without_times(other) == without_times(direct));
  }
}

// One part of a rank's experts travels while the other is computed.
TEST_CASE("experts that are exchanged in parts change no bit", "[grid]") {
  const TemporaryFolder folder;
  int run = 0;
  const auto train_with = [&](int ranks, const std::string& set) {
    return without_times(train(ranks, "tiny-released.json", folder / std::to_string(++run),
                               "--set run.num_steps=8 " + set));
  };
  const std::string parts = " --set parallel.exchange_parts=2 --set parallel.exchange=";
  for (const std::string grid :
       {"--ep 2", "--ep 2 --tp 2", "--ep 2 --set run.compute_type=bf16",
        "--ep 2 --set parallel.recompute=block",
        "--ep 2 --set model.parallel_block=true --set model.residual_ffn=parallel",
        "--ep 2 --tp 2 --set model.parallel_block=true --set model.residual_ffn=parallel "
        "--set parallel.recompute=block"}) {
    const int ranks = grid.starts_with("--ep 2 --tp 2") ? 4 : 2;
    const auto whole = train_with(ranks, grid);
    for (const std::string kind :
         {"direct", "fixed_capacity", "two_level --set parallel.ranks_per_node=1", "two_level"}) {
      INFO(grid << parts << kind);
      CHECK(train_with(ranks, grid + parts + kind) == whole);
    }
  }
  const CommandResult refused =
      run_openmoe(2, train_arguments("tiny-released.json", folder / "refused",
                                     "--ep 2 --set parallel.exchange_parts=3"));
  INFO(refused.output);
  CHECK(refused.exit_code == 2);
  CHECK(refused.output.find("parallel.exchange_parts: found 3, allowed with 2 experts on a rank: "
                            "1 to 2") != std::string::npos);
}

TEST_CASE("updates in the backward pass change no loss", "[grid]") {
  const TemporaryFolder folder;
  const std::string type = GENERATE("f32", "bf16");
  for (const std::string more : {"", " --set model.tied_embedding=true", " --ep 2"}) {
    INFO(type << more);
    const int ranks = more == " --ep 2" ? 2 : 1;
    const std::string set = "--set run.num_steps=8 --set run.compute_type=" + type + more;
    const std::string run = folder / std::to_string(more.size());
    const auto after = train(ranks, "tiny-released.json", run + "-after", set);
    const auto within = train(ranks, "tiny-released.json", run + "-within",
                              set + " --set parallel.update_in_backward=true");
    REQUIRE(within.size() == after.size());
    for (std::size_t step = 0; step < after.size(); ++step) {
      CHECK(within[step].at("loss") == after[step].at("loss"));
      CHECK(within[step].at("moe") == after[step].at("moe"));
      CHECK(relative_error(within[step].at("grad_norm"), after[step].at("grad_norm")) < 1e-12);
    }
  }
  if (type == "bf16") return;
  const std::string steps = "--set run.num_steps=8 --ep 2";
  check_same_run(train(4, "tiny-released.json", folder / "four",
                       steps + " --set parallel.update_in_backward=true"),
                 train(4, "tiny-released.json", folder / "four-after", steps));
}

// Where bf16 rounds, the loss moves by less than it does from step to step.
TEST_CASE("bf16 learns what f32 learns, and the profile names its ops", "[bf16]") {
  const TemporaryFolder folder;
  const auto f32 = train(1, "tiny-released.json", folder / "f32");
  const CommandResult result =
      run_openmoe(1, train_arguments("tiny-released.json", folder / "bf16",
                                     "--set run.compute_type=bf16 --set run.profile=true"));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  for (const char* line : {"linear_backward_weight", "convert", "neither products nor attention"})
    CHECK(result.output.find(line) != std::string::npos);
  const auto bf16 = read_json_lines(folder / "bf16/metrics.jsonl");
  REQUIRE(bf16.size() == f32.size());
  for (std::size_t step = 0; step < f32.size(); ++step)
    CHECK(relative_error(bf16[step].at("cross_entropy"), f32[step].at("cross_entropy")) < 0.01);
  CHECK(bf16.back().at("loss") != f32.back().at("loss"));  // it did round
}

TEST_CASE("ten steps and ten more are twenty", "[resume]") {
  const std::string type = GENERATE("f32", "bf16");
  INFO(type);
  const TemporaryFolder folder;
  const std::string steps = "--ep 2 --set run.compute_type=" + type +
                            " --set run.checkpoint_every=5 --set run.num_steps=";
  const auto straight =
      without_times(train(2, "tiny-released.json", folder / "straight", steps + "20"));
  train(2, "tiny-released.json", folder / "split", steps + "10");
  const auto resumed =
      without_times(train(2, "tiny-released.json", folder / "split", steps + "20 --resume"));
  CHECK(resumed == straight);
}

TEST_CASE("what a killed run wrote after its last checkpoint is trained again, once", "[resume]") {
  const TemporaryFolder folder;
  const std::string steps = "--set run.checkpoint_every=4 --set run.num_steps=";
  const auto straight =
      without_times(train(1, "tiny-released.json", folder / "straight", steps + "8"));
  const std::string run = folder / "killed";
  train(1, "tiny-released.json", run, steps + "4");
  {  // rows of steps that no checkpoint has, and a torn line
    std::ofstream metrics(run + "/metrics.jsonl", std::ios::app);
    metrics << R"({"step":4,"loss":99.0})"
            << "\n"
            << R"({"step":5,"loss":99.0})"
            << "\n"
            << R"({"step":6,"lo)";
  }
  const auto resumed = without_times(train(1, "tiny-released.json", run, steps + "8 --resume"));
  CHECK(resumed == straight);
  const auto meta =
      nlohmann::json::parse(std::ifstream(run + "/checkpoints/step-00000008/manifest.json"));
  CHECK(meta.dump().find("\"positions\":8192") != std::string::npos);
}

TEST_CASE("a diverging run stops with the step and keeps its checkpoints", "[errors]") {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  train(2, "tiny-released.json", run, "--ep 2 --set run.num_steps=2");
  const CommandResult result = run_openmoe(
      2, train_arguments(
             "tiny-released.json", run,
             "--ep 2 --resume --set run.num_steps=9 --set optimizer.peak_learning_rate=1e30"));
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(result.output.find("the update was not applied") != std::string::npos);
  const CommandResult within =
      run_openmoe(2, train_arguments("tiny-released.json", run,
                                     "--ep 2 --resume --set run.num_steps=9 --set "
                                     "parallel.update_in_backward=true --set "
                                     "optimizer.peak_learning_rate=1e30"));
  INFO(within.output);
  CHECK(within.exit_code == 1);
  CHECK(within.output.find("nothing of the step was saved") != std::string::npos);
  CHECK(std::filesystem::exists(run + "/checkpoints/step-00000002/manifest.json"));
}

TEST_CASE("a run continues on another grid", "[resume]") {
  const TemporaryFolder folder;
  const std::string steps = "--set run.num_steps=";
  const auto straight = train(1, "tiny-released.json", folder / "straight", steps + "20");
  train(4, "tiny-released.json", folder / "split", steps + "7 --ep 2 --tp 2");
  train(2, "tiny-released.json", folder / "split", steps + "10 --ep 2 --resume");
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
  refuse(2, train_arguments("tiny-released.json", run, "--device cpu --set run.attention=cudnn"),
         "run.attention: found cudnn, allowed with --device cpu: auto, builtin");
  train(1, "tiny-released.json", run, "--set run.num_steps=1");
  refuse(2, train_arguments("tiny-released.json", run), "--resume");
  refuse(2, train_arguments("tiny-released.json", run, "--resume --set model.ffn_dim=96"), "model");
}

TEST_CASE("damaged shards end every rank before the first step", "[errors]") {
  namespace fs = std::filesystem;
  const TemporaryFolder folder;
  const std::string data = folder / "data";
  fs::copy(OPENMOE_TEST_SHARDS, data, fs::copy_options::recursive);
  std::string shard;  // one of the github source
  for (const auto& entry : fs::directory_iterator(data + "/github"))
    if (entry.path().extension() == ".h5") shard = entry.path().string();
  REQUIRE_FALSE(shard.empty());
  const std::string arguments = "train " + source_path("test/recipes/tiny-released.json") +
                                " --data " + data + " --out " + (folder / "run") + " --ep 2";
  const auto refused = [&] {
    const CommandResult result = run_openmoe(2, arguments);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find("github") != std::string::npos);
  };
  SECTION("truncated") {
    fs::resize_file(shard, fs::file_size(shard) / 2);
    refused();
  }
  SECTION("missing") {
    fs::remove(shard);
    refused();
  }
  SECTION("source missing") {
    fs::remove_all(data + "/github");
    refused();
  }
}

TEST_CASE("a full disk ends every rank and keeps what was saved", "[errors]") {
  namespace fs = std::filesystem;
  const std::string background = GENERATE("false", "true");
  const TemporaryFolder folder;
  const std::string disk = folder / "disk";
  fs::create_directory(disk);
  if (run_command("mount -t tmpfs -o size=8m tmpfs " + disk).exit_code != 0) {
    WARN("mounting a small disk is not permitted here: not tried");
    return;
  }
  const std::string run = disk + "/run";
  // A checkpoint of this model takes more than 2 MiB: the first ones fit, later ones do not.
  const CommandResult result =
      run_openmoe(2, train_arguments("tiny-released.json", run,
                                     "--ep 2 --set run.num_steps=12 --set run.checkpoint_every=1 "
                                     "--set run.keep_checkpoints=100 "
                                     "--set run.checkpoint_in_background=" +
                                         background));
  // What was saved before can go on elsewhere.
  const std::string elsewhere = folder / "elsewhere";
  fs::create_directory(elsewhere);
  fs::copy(run + "/checkpoints", elsewhere + "/checkpoints", fs::copy_options::recursive);
  run_command("umount " + disk);
  INFO(result.output);
  CHECK(result.exit_code != 0);
  CHECK(result.output.find(run) != std::string::npos);
  const auto said = result.output.find("was not saved: ");
  REQUIRE(said != std::string::npos);  // by one rank for all
  CHECK(result.output.find("was not saved: ", said + 1) == std::string::npos);
  CHECK(result.output.find("checkpoints saved before are untouched") != std::string::npos);
  train(2, "tiny-released.json", elsewhere, "--ep 2 --resume --set run.num_steps=12");
}

}  // namespace openmoe::test
