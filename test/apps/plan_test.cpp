// openmoe plan: the numbers of the published models, and memory that follows the grid.
#include <cstdio>
#include <utility>

#include "test/support/catch.h"
#include "test/support/run_command.h"

namespace openmoe::test {
namespace {

using nlohmann::json;

json plan(const std::string& recipe, const std::string& more = "") {
  const CommandResult result = run_openmoe(1, "plan " + source_path(recipe) + " --json " + more);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return json::parse(result.output);
}

// 1234567 -> "1,234,567"
std::string with_commas(std::int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<std::size_t>(at), ",");
  return text;
}

}  // namespace

TEST_CASE("plan counts the parameters of the released and of the paper's models", "[plan]") {
  struct Expected {
    const char* recipe;
    std::int64_t total, active;
  };
  const Expected models[] = {
      {"recipes/released/openmoe-base.json", 799663104, 141616128},
      {"recipes/released/openmoe-8b.json", 11855046656, 2751834112},
      {"recipes/released/openmoe-34b.json", 46270737408, 8456727552},
      {"recipes/openmoe-base.json", 649943808, 155769600},    // Table 11: 650M
      {"recipes/openmoe-8b.json", 8779827200, 2214955008},    // 8.7B
      {"recipes/openmoe-34b.json", 34611465216, 6644763648},  // 34B
  };
  for (const Expected& model : models) {
    INFO(model.recipe);
    const json parameters = plan(model.recipe).at("parameters");
    CHECK(parameters.at("total").get<std::int64_t>() == model.total);
    CHECK(parameters.at("active").get<std::int64_t>() == model.active);
    std::ifstream file(source_path(model.recipe));
    const std::string description = json::parse(file).at("description");
    CHECK(description.find(with_commas(model.total) + " parameters") != std::string::npos);
    CHECK(description.find(with_commas(model.active) + " active") != std::string::npos);
  }
  // The embedding counts once where it is tied, twice with a head of its own.
  CHECK(plan("recipes/openmoe-base.json").at("parameters").at("active_with_embedding") ==
        155769600 + 256384LL * 768);
  CHECK(plan("recipes/released/openmoe-base.json").at("parameters").at("active_with_embedding") ==
        141616128 + 2 * 256384LL * 768);
}

TEST_CASE("plan sizes the memory of a rank without having its grid", "[plan]") {
  const json alone = plan("test/recipes/tiny-released.json").at("memory");
  const json shared = plan("test/recipes/tiny-released.json", "--ep 2 --ranks 4").at("memory");
  std::int64_t sum = 0;
  for (const auto& item : alone.items())
    if (item.key() != "total") sum += item.value().get<std::int64_t>();
  CHECK(sum == alone.at("total").get<std::int64_t>());
  // One MoE layer of 4 experts with 4 * 32 * 48 values: ep = 2 leaves half of them.
  const std::int64_t expert_bytes = 4 * 4 * 32 * 48 * 4;
  for (const char* category : {"parameters", "gradients"})
    CHECK(alone.at(category).get<std::int64_t>() - shared.at(category).get<std::int64_t>() ==
          expert_bytes / 2);
  CHECK(shared.at("exchange").get<std::int64_t>() > 0);
  CHECK(shared.at("activations").get<std::int64_t>() < alone.at("activations").get<std::int64_t>());
}

TEST_CASE("plan follows overrides and refuses grids that do not fit", "[plan]") {
  const json small =
      plan("recipes/quickstart.json", "--set model.num_layers=2 --set model.moe_interval=0");
  const std::int64_t layer = 4 * 128 * 128 + 4 * 128 * 384 + 2 * 128;
  CHECK(small.at("parameters").at("total") == 2 * 8192 * 128 + 2 * layer + 128);
  for (const char* grid : {"--ep 3 --ranks 3", "--ep 2 --ranks 3", "--ranks 32"}) {
    const CommandResult result =
        run_openmoe(1, "plan " + source_path("recipes/quickstart.json ") + grid);
    INFO(grid << "\n" << result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find("openmoe: error: ") == 0);
  }
}

TEST_CASE("plan prints one table whatever the number of ranks", "[plan]") {
  const CommandResult result =
      run_openmoe(2, "plan " + source_path("recipes/quickstart.json") + " --ep 2");
  INFO(result.output);
  CHECK(result.exit_code == 0);
  const std::size_t first = result.output.find("parameters of the model");
  CHECK(first != std::string::npos);
  CHECK(result.output.find("parameters of the model", first + 1) == std::string::npos);
  CHECK(result.output.find("2 ranks = dp 1 x ep 2") != std::string::npos);
}

TEST_CASE("plan knows the collectives of grids of thousands of ranks", "[plan]") {
  const json of =
      plan("recipes/released/openmoe-8b.json",
           "--ranks 8192 --tp 8 --set run.compute_type=bf16 --set data.batch_rows=2048");
  CHECK(of.at("grid") == json({{"ranks", 8192},
                               {"dp", 32},
                               {"ep", 32},
                               {"tp", 8},
                               {"rows_per_rank", 2},
                               {"micro_batch_rows", 2}}));
  const auto bytes = [&](const std::string& group, const std::string& verb) {
    for (const json& row : of.at("collectives"))
      if (row.at("group") == group && row.at("verb") == verb)
        return row.at("bytes").get<std::int64_t>();
    return std::int64_t{-1};
  };
  // Four MoE layers of one expert of 4 D F values a rank, each an eighth of it here, in f32.
  CHECK(bytes("replicas", "all_reduce_sum of f32") == 4LL * 4 * 2048 * 8192 / 8 * 4);
  // In each of the four layers rows go to experts and back, forward and backward: 160 slots of
  // 4,096 positions in each of 32 experts, in bf16 and an eighth of the width; what stays on the
  // rank does not travel.
  CHECK(bytes("expert", "start of all_to_all_rows") == 4LL * 4 * 31 * 160 * 256 * 2);
}

namespace {

constexpr const char* kSmallMachine = R"({
  "name": "small", "description": "for a test",
  "f32": {"peak": 1e12, "fraction": 0.5}, "bf16": {"peak": 2e12, "fraction": 0.5},
  "memory": {"peak": 1e15, "fraction": 1}, "memory_bytes": MEMORY, "memory_fraction": 1,
  "ranks_per_node": 2,
  "intra_node": {"bandwidth": 1e12, "fraction": 1, "latency": 1e-9},
  "inter_node": {"bandwidth": 1e9, "fraction": 0.5, "latency": 1e-9}})";

std::string machine_file(const TemporaryFolder& folder, const std::string& memory) {
  std::string text = kSmallMachine;
  text.replace(text.find("MEMORY"), 6, memory);
  write_file(folder / "machine.json", text);
  return folder / "machine.json";
}

}  // namespace

TEST_CASE("plan's time is that of its arithmetic and of the links that groups cross", "[plan]") {
  const TemporaryFolder folder;
  const std::string machine = "--machine " + machine_file(folder, "1e12");
  const json alone = plan("recipes/quickstart.json", machine);
  const json& time = alone.at("time");
  // Half of the peak, and a little more arithmetic than is useful: the backward of attention makes
  // its scores again.
  const double useful = alone.at("flops_per_step").get<double>() / 0.5e12;
  CHECK(time.at("compute_seconds").get<double>() > 0.99 * useful);
  CHECK(time.at("compute_seconds").get<double>() < 1.1 * useful);
  CHECK(time.at("exposed_communication_seconds") == 0.0);
  CHECK(plan("recipes/quickstart.json", machine + " --set run.compute_type=bf16")
            .at("time")
            .at("compute_seconds")
            .get<double>() < 0.6 * time.at("compute_seconds").get<double>());

  // Ranks 0 and 1 share a node: pairs along tp do not leave it, those along dp do once tp is 2.
  const auto seconds = [&](const std::string& more, const std::string& group) {
    const json of = plan("recipes/quickstart.json", machine + more);
    const json& place = of.at("time").at("communication").at(group);
    return std::pair(place.at("nodes").get<int>(), place.at("seconds").get<double>());
  };
  const auto [one_node, fast] = seconds(" --ranks 2", "data");
  CHECK(one_node == 1);
  const auto [two_nodes, slow] = seconds(" --ranks 4", "data");
  CHECK(two_nodes == 2);
  // 2 (k-1)/k B/m/b' between two nodes of two ranks: B / 2 at 0.5 GB/s.
  const json four = plan("recipes/quickstart.json", machine + " --ranks 4");
  double bytes = 0.0;
  for (const json& row : four.at("collectives"))
    if (row.at("group") == "data") bytes += row.at("bytes").get<double>();
  CHECK(slow == Approx(bytes / 2 / 0.5e9).epsilon(0.01));
  CHECK(fast < 0.01 * slow);
  CHECK(seconds(" --ranks 4 --tp 2", "tensor").first == 1);
  CHECK(seconds(" --ranks 4 --tp 2", "data").first == 2);
  CHECK(seconds(" --ranks 4 --ep 2", "expert").first == 1);
  CHECK(seconds(" --ranks 4 --ep 2", "replicas").first == 2);
}

TEST_CASE("plan says how rows travel to experts, and where it does not know how", "[plan]") {
  const TemporaryFolder folder;
  const std::string machine = "--ranks 4 --machine " + machine_file(folder, "1e12");
  const auto exchange = [&](const std::string& more) -> std::string {
    const json of = plan("recipes/quickstart.json", machine + more);
    return of.contains("exchange") ? of.at("exchange") : "none";
  };
  CHECK(exchange("") == "none");
  CHECK(exchange(" --ep 4 --set model.moe_interval=0") == "none");
  CHECK(exchange(" --ep 2") == "direct");  // on one node
  CHECK(exchange(" --ep 4") == "direct, in place of two_level");
  CHECK(exchange(" --ep 4 --set parallel.exchange=direct") == "direct");
  CHECK(exchange(" --ep 4 --set parallel.exchange=fixed_capacity") == "fixed_capacity");
  CHECK(exchange(" --ep 2 --tp 2") == "direct");  // one rank on each node
  const CommandResult table = run_openmoe(
      1, "plan " + source_path("recipes/quickstart.json") +
             " --ep 2 --set parallel.exchange=two_level --set parallel.ranks_per_node=1");
  INFO(table.output);
  CHECK(table.output.find("rows to and from experts: direct, in place of two_level\n") !=
        std::string::npos);
}

TEST_CASE("plan hides sums of gradients that are started in the backward pass", "[plan]") {
  const TemporaryFolder folder;
  const std::string machine = "--machine " + machine_file(folder, "1e12") + " --ranks 4";
  const auto exposed = [&](const std::string& more) {
    const json time = plan("recipes/quickstart.json", machine + more).at("time");
    CHECK(time.at("step_seconds").get<double>() ==
          Approx(time.at("compute_seconds").get<double>() +
                 time.at("optimizer_seconds").get<double>() +
                 time.at("exposed_communication_seconds").get<double>()));
    return time.at("exposed_communication_seconds").get<double>();
  };
  const double after = exposed(""), during = exposed(" --set parallel.reduction_bucket_kb=256");
  CHECK(during > 0.0);  // the embedding's gradient comes last
  CHECK(during < 0.5 * after);
}

TEST_CASE("plan counts memory and exchanges of recomputation", "[plan]") {
  const auto of = [](const std::string& kind) {
    return plan("test/recipes/tiny-released.json",
                "--ranks 2 --ep 2 --set model.num_layers=4 --set parallel.recompute=" + kind);
  };
  const auto activations = [](const json& plan) {
    return plan.at("memory").at("activations").get<double>();
  };
  const auto calls = [](const json& plan) {
    for (const json& row : plan.at("collectives"))
      if (row.at("group") == "expert" && row.at("verb") == "start of all_to_all_rows")
        return row.at("calls").get<int>();
    return 0;
  };
  const json none = of("none");
  CHECK(calls(none) == 2 * 4);  // two MoE layers: there and back, forward and backward
  for (const char* kind : {"ffn", "attention", "block"}) {
    INFO(kind);
    const json with = of(kind);
    CHECK(activations(with) < activations(none));
    CHECK(with.at("flops_per_step") == none.at("flops_per_step"));  // the useful ones
    CHECK(calls(with) == 2 * (std::string(kind) == "block" ? 6 : 4));
  }
}

TEST_CASE("plan refuses what does not fit and names the smallest change that does", "[plan]") {
  const TemporaryFolder folder;
  // 325 MiB are needed; with recomputation of attention 293, of FFNs 181, of layers 145. In this
  // order they cost more arithmetic.
  struct Case {
    const char* memory;
    const char* change;
  };
  for (const Case& fitting :
       {Case{"330e6", "given --set parallel.recompute=attention\n"},
        Case{"300e6", "given --set parallel.recompute=ffn\n"},
        Case{"180e6", "given --set parallel.recompute=block\n"},
        Case{"150e6", "--set parallel.micro_batch_rows="}, Case{"40e6", "--ranks "}}) {
    const std::string asked = "plan " + source_path("recipes/quickstart.json") + " --machine " +
                              machine_file(folder, fitting.memory);
    const CommandResult result = run_openmoe(1, asked);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find("does not fit 1 ranks of machine 'small'") != std::string::npos);
    const std::size_t given = result.output.find("given ");
    REQUIRE(given != std::string::npos);
    std::string change = result.output.substr(given + 6);
    change.erase(change.find('\n'));
    CHECK(("given " + change + "\n").find(fitting.change) != std::string::npos);
    CHECK(run_openmoe(1, asked + " " + change).exit_code == 0);  // it is so
  }
  const CommandResult hopeless = run_openmoe(1, "plan " + source_path("recipes/quickstart.json") +
                                                    " --machine " + machine_file(folder, "1e6"));
  CHECK(hopeless.exit_code == 2);
  CHECK(hopeless.output.find("no grid of up to 4096 ranks") != std::string::npos);
}

namespace {

// What plan would add to or change in `asked`, which must not fit the machine: "--ranks 64".
std::string change_that_fits(const std::string& asked) {
  const CommandResult result = run_openmoe(1, asked);
  INFO(result.output);
  CHECK(result.exit_code == 2);
  const std::size_t given = result.output.find("given ");
  REQUIRE(given != std::string::npos);
  const std::string change = result.output.substr(given + 6);
  const std::size_t end = change.find('\n');
  CHECK(change.substr(end).starts_with("\n(in place of options and keys of the same name)"));
  return change.substr(0, end);
}

}  // namespace

TEST_CASE("plan proposes more ranks on the same ep and tp, and no more ep to a dense model",
          "[plan]") {
  const TemporaryFolder folder;
  const std::string quickstart = "plan " + source_path("recipes/quickstart.json") + " --machine ";
  const std::string grid =
      " --ep 8 --tp 4 --set data.batch_rows=64 --set parallel.recompute=block "
      "--set parallel.update_in_backward=true ";
  // Nothing is left to change but the rows of a rank.
  const std::string asked = quickstart + machine_file(folder, "14.99e6") + grid;
  const std::string change = change_that_fits(asked + "--ranks 32");
  CHECK(change.starts_with("--ranks "));
  CHECK(change.find("--", 2) == std::string::npos);
  CHECK(run_openmoe(1, asked + change).exit_code == 0);

  const std::string dense = quickstart + machine_file(folder, "66e6") +
                            " --set model.moe_interval=0 --set data.batch_rows=64 "
                            "--set parallel.recompute=block ";
  const std::string of_dense = change_that_fits(dense + "--set parallel.update_in_backward=true");
  INFO(of_dense);
  CHECK(of_dense == "--ranks 16");
}

TEST_CASE("plan proposes no recipe that would be refused", "[plan]") {
  const TemporaryFolder folder;
  const std::string asked = "plan " + source_path("recipes/quickstart.json") + " --set " +
                            "data.batch_rows=2 --set parallel.recompute=block --machine ";
  // Two rows are one routing group: only the update in the backward pass makes one rank smaller.
  const std::string in_backward = "--set parallel.update_in_backward=true";
  const std::string machine = machine_file(folder, "56e6");
  CHECK(change_that_fits(asked + machine) == in_backward);
  CHECK(change_that_fits(asked + machine + " --set parallel.shard_update=true") ==
        in_backward + " --set parallel.shard_update=false");
  CHECK(change_that_fits(asked + machine + " --set parallel.reduction_bucket_kb=64") ==
        in_backward + " --set parallel.reduction_bucket_kb=0");
  CHECK(change_that_fits(asked + machine + " --set run.on_nonfinite=skip")
            .find("update_in_backward") == std::string::npos);
}

TEST_CASE("the machines of recipes/machines are read, and mistakes in one are all named",
          "[plan]") {
  for (const char* name : {"h100-node", "a100-node"})
    CHECK(plan("recipes/released/openmoe-8b.json",
               "--ranks 512 --set run.compute_type=bf16 --machine " +
                   source_path(std::string("recipes/machines/") + name + ".json"))
              .at("fits") == true);
  const TemporaryFolder folder;
  write_file(folder / "machine.json",
             R"({"name": "m", "f32": {"peak": -1, "fraction": 1.5}, "bandwith": 3})");
  const CommandResult result = run_openmoe(1, "plan " + source_path("recipes/quickstart.json") +
                                                  " --machine " + (folder / "machine.json"));
  INFO(result.output);
  CHECK(result.exit_code == 2);
  for (const char* expected : {"f32.peak: found -1, allowed: a number above 0", "f32.fraction",
                               "bandwith: unknown key", "memory_bytes: is missing"})
    CHECK(result.output.find(expected) != std::string::npos);
}

TEST_CASE("plan measures the machine it runs on", "[plan]") {
  for (const int ranks : {1, 2}) {
    const CommandResult result = run_openmoe(
        ranks, "plan " + source_path("test/recipes/tiny-released.json") + " --measure --json");
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    const json of = json::parse(result.output);
    const json& machine = of.at("machine");
    CHECK(machine.at("f32").at("peak").get<double>() > 1e8);
    CHECK(machine.at("memory").at("peak").get<double>() > 1e8);
    CHECK(machine.at("memory_bytes").get<double>() > 1e8);
    CHECK(machine.at("ranks_per_node") == ranks);
    CHECK(of.at("time").at("step_seconds").get<double>() > 0.0);
    CHECK((of.at("time").at("exposed_communication_seconds").get<double>() > 0.0) == (ranks > 1));
  }
}

TEST_CASE("train allocates what was planned", "[plan]") {
  for (const char* grid : {"--ep 1", "--ep 2", "--tp 2"})
    for (const char* type : {"f32", "bf16"}) {
      const std::string asked = source_path("test/recipes/tiny-released.json") + " " + grid +
                                " --set run.compute_type=" + type;
      const TemporaryFolder folder;
      const CommandResult trained =
          run_openmoe(2, "train " + asked + " --set run.num_steps=1 --data " +
                             std::string(OPENMOE_TEST_SHARDS) + " --out " + (folder / "run"));
      INFO(trained.output);
      REQUIRE(trained.exit_code == 0);
      const std::size_t table = trained.output.find("memory of rank 0");
      REQUIRE(table != std::string::npos);
      const std::size_t total = trained.output.find("total", table);
      const CommandResult planned = run_openmoe(1, "plan --json --ranks 2 " + asked);
      REQUIRE(planned.exit_code == 0);
      const double planned_mib =
          json::parse(planned.output).at("memory").at("total").get<double>() / (1 << 20);
      // Printed with one digit after the point; tp divides the vocabulary.
      CHECK(std::stod(trained.output.substr(total + 5)) == Approx(planned_mib).margin(0.051));
    }
}

TEST_CASE("the README's table of planned runs is what plan computes", "[plan]") {
  std::ifstream file(source_path("README.md"));
  int rows = 0;
  for (std::string line; std::getline(file, line);) {
    char name[32] = "";
    long long gpus = 0, dp = 0, ep = 0, tp = 0;
    double gib = 0.0, step = 0.0, compute = 0.0, optimizer = 0.0, exposed = 0.0, tokens = 0.0,
           days = 0.0, share = 0.0;
    const int fields = std::sscanf(
        line.c_str(),
        "| %31[^|] | %lld | %lld x %lld x %lld | %lf | %lf | %lf %% | %lf %% | %lf %% | %lfM | %lf "
        "| %lf |",
        name, &gpus, &dp, &ep, &tp, &gib, &step, &compute, &optimizer, &exposed, &tokens, &days,
        &share);
    if (fields != 13) continue;
    INFO(line);
    ++rows;
    const std::string model = name;
    const std::string size = model.starts_with("Base") ? "base"
                             : model.starts_with("8B") ? "8b"
                                                       : "34b";
    const json of = plan("recipes/released/openmoe-" + size + ".json",
                         "--machine " + source_path("recipes/machines/h100-node.json") +
                             " --set run.compute_type=bf16 --set parallel.reduction_bucket_kb=65536"
                             " --ranks " +
                             std::to_string(gpus) + " --ep " + std::to_string(ep) + " --tp " +
                             std::to_string(tp) +
                             (model.find("1,024 rows") != std::string::npos
                                  ? " --set data.batch_rows=1024 --set run.num_steps=62500"
                                  : ""));
    const json& time = of.at("time");
    const double seconds = time.at("step_seconds");
    CHECK(of.at("grid").at("dp") == dp);
    CHECK(of.at("memory").at("total").get<double>() / (1 << 30) == Approx(gib).margin(0.06));
    CHECK(seconds == Approx(step).epsilon(0.01));
    CHECK(100 * time.at("compute_seconds").get<double>() / seconds == Approx(compute).margin(0.6));
    CHECK(100 * time.at("optimizer_seconds").get<double>() / seconds ==
          Approx(optimizer).margin(0.6));
    CHECK(100 * time.at("exposed_communication_seconds").get<double>() / seconds ==
          Approx(exposed).margin(0.6));
    CHECK(time.at("tokens_per_second").get<double>() / 1e6 == Approx(tokens).epsilon(0.01));
    CHECK(time.at("days").get<double>() == Approx(days).epsilon(0.01));
    CHECK(time.at("share_of_peak").get<double>() == Approx(share).margin(0.006));
  }
  CHECK(rows == 9);
}

}  // namespace openmoe::test
