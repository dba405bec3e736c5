// `openmoe bench-device RECIPE`: one JSON object with what a user of devices wants to know before a
// long run: tokens/s and share of peak of whole training steps, with the routers' own choice and
// with an even one; each kind of op beside its roofline; the exchange between ranks by size. On
// random tokens. scripts/bench_gpu.sh runs it.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/bench_step.h"
#include "apps/command.h"
#include "apps/device.h"
#include "apps/device_peaks.h"
#include "apps/exchange_bench.h"
#include "apps/host_params.h"
#include "apps/machine_measure.h"
#include "apps/network.h"
#include "apps/op_costs.h"
#include "apps/start_weights.h"
#include "apps/step_agreement.h"
#include "apps/training_step.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_io.h"
#include "core/op_profile.h"
#include "cuda/device_ops.h"
#include "parallel/row_transport.h"

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr const char* kFlopFormula =
    "useful FLOPs of a step of all ranks: 3 x the forward products (2 per multiply-add) of "
    "attention projections, FFNs, router and head per position, causal attention at half of T x T, "
    "and of the experts 6 d_model (gate width + 2 ffn_dim) per kept slot; nothing that is computed "
    "twice, no element-wise work. mfu = FLOPs / (seconds x ranks x peak of run.compute_type)";
constexpr const char* kExchangeFormula =
    "as nccl-tests, doc/PERFORMANCE.md, alltoall: algbw = bytes / seconds, busbw = algbw x (n - 1) "
    "/ n; bytes: what one rank sends to all n ranks, itself included; seconds: of the slowest rank";
constexpr const char* kRooflineFormula =
    "roofline_seconds: per call the longer of flops / peak of the operands' type and bytes / peak "
    "of memory, bytes being those of the tensors read and written, each once; percent = 100 x "
    "roofline_seconds / seconds; null for ops of which a rehearsed step does not have as many. "
    "Measured in steps with even routing, by events on the stream "
    "around each op, on rank 0";

struct DeviceBenchOptions {
  RecipeOptions recipe;
  GridOptions grid;
  DeviceOptions device;
  Peaks peaks;
  std::int64_t num_steps = 10;
  std::int64_t num_warmup_steps = 3;
  std::int64_t rows_per_rank = 0;  // 0: as the recipe says
  ExchangeSizes exchange{std::int64_t{64} << 10, std::int64_t{256} << 20, 20};
  std::string from;
  std::string out;
};

// The recipe, with the batch that so many rows on each data rank make.
Recipe load(const DeviceBenchOptions& options, std::int64_t ranks) {
  Recipe recipe = load_recipe(options.recipe.path, options.recipe.overrides);
  const std::int64_t tp = options.grid.tp_of(recipe);
  if (options.rows_per_rank > 0)
    recipe.data.batch_rows = options.rows_per_rank * std::max<std::int64_t>(1, ranks / tp);
  check_trainable(recipe);
  return recipe;
}

Peaks find_peaks(const DeviceBenchOptions& options, const Ops& ops, MpiEnvironment& mpi) {
  Peaks peaks;
  if (ops.device() == Device::cuda) {
    const std::string name = current_cuda_device().name;
    peaks = override_peaks(data_sheet_peaks(name), options.peaks);
    if (!peaks.is_complete())
      throw UserError(concat("the peaks of '", name,
                             "' are not known here: give all of --peak-f32, --peak-bf16 (FLOP/s, "
                             "dense) and --peak-memory (bytes/s), from its data sheet"));
    return peaks;
  }
  if (!options.peaks.is_complete()) {
    const Machine machine = measure_machine(mpi);
    peaks = {machine.f32.peak, machine.bf16.peak, machine.memory.peak, "measured"};
  }
  return override_peaks(peaks, options.peaks);
}

Json describe_machine(const Ops& ops, const DeviceBenchOptions& options, CommandContext& context) {
  Json own = {{"rank", context.mpi.world_rank()}, {"rank_on_host", context.mpi.node_rank()}};
  const bool on_cuda = ops.device() == Device::cuda;
  if (on_cuda) {
    const CudaDevice device = current_cuda_device();
    own["name"] = device.name;
    own["architecture"] = concat("sm_", device.architecture);
    own["memory_bytes"] = device.memory_bytes;
    own["multiprocessors"] = device.multiprocessors;
  } else {
    own["name"] = describe_device(ops, context.mpi);
    own["threads"] = context.num_threads;
  }
  Json machine = {{"device", on_cuda ? "cuda" : "cpu"},
                  {"ranks", context.mpi.world_size()},
                  {"ranks_per_host", ranks_per_host(context.mpi.world())},
                  {"collectives", on_cuda ? options.device.collectives : "mpi"},
                  {"versions", Json::object()},
                  {"devices", Json::array()}};
  machine["versions"]["openmoe"] = OPENMOE_VERSION;
  if (on_cuda)
    for (const auto& [library, version] : cuda_library_versions())
      machine["versions"][library] = version;
  bool is_emulated = false;
  for (const std::string& text : context.mpi.world().all_gather(own.dump())) {
    const Json device = Json::parse(text);
    is_emulated |= device["name"].get<std::string>().starts_with("Emulated");
    machine["devices"].push_back(device);
  }
  machine["is_emulated"] = is_emulated;
  if (is_emulated) machine["note"] = "times of emulated devices say nothing about any device";
  return machine;
}

// Overwrites routers' logits so that token n chooses experts 2n and 2n + 1 modulo E.
class EvenChoice {
 public:
  EvenChoice(Ops& ops, std::int64_t tokens, std::int64_t experts)
      : ops_(ops), arena_(ops, tokens * experts * 4 + 64) {
    logits_ =
        arena_.allocate("even choice", MemoryCategory::exchange, DType::f32, {tokens, experts});
    std::vector<float> host(static_cast<std::size_t>(tokens * experts), 0.0f);
    for (std::int64_t n = 0; n < tokens; ++n)
      for (std::int64_t k = 0; k < 2; ++k)
        host[static_cast<std::size_t>(n * experts + (2 * n + k) % experts)] = k == 0 ? 2.0f : 1.0f;
    ops_.copy(logits_, host_view(host.data(), logits_.shape));
  }
  void set(Tensor logits) { ops_.copy(logits, logits_); }

 private:
  Ops& ops_;
  Arena arena_;
  Tensor logits_;
};

// Steps of one kind.
struct Series {
  std::vector<double> seconds, flops;
  // Of MoE layers: assignments of the expert chosen most over the mean expert's, the largest over
  // layers, mean over steps; and the share of all assignments that got a slot.
  double largest_load = 0.0, kept_share = 0.0;
};

void add_loads(Series& series, const StepSums& sums) {
  double largest = 0.0, chosen = 0.0, kept = 0.0;
  for (const MoeLayerSums& layer : sums.moe) {
    double total = 0.0, most = 0.0;
    for (const double assignments : layer.chosen) {
      total += assignments;
      most = std::max(most, assignments);
    }
    for (const double assignments : layer.kept) kept += assignments;
    largest =
        std::max(largest, most * static_cast<double>(layer.chosen.size()) / std::max(1.0, total));
    chosen += total;
  }
  series.largest_load += largest;
  series.kept_share += kept / std::max(1.0, chosen);
}

class DeviceBench {
 public:
  DeviceBench(const DeviceBenchOptions& options, const Recipe& recipe, ProcessGrid& grid, Ops& ops,
              OpClock& clock)
      : options_(options),
        recipe_(recipe),
        grid_(grid),
        clock_(clock),
        network_(ops, grid, recipe, micro_batch_rows(recipe, grid.num_data_ranks()), true),
        training_(network_, grid, recipe),
        batch_(
            random_batch(recipe, recipe.data.batch_rows / grid.num_data_ranks(), grid.data_rank())),
        counts_(agree_on_step(batch_, recipe, grid, 0).counts),
        step_(recipe.optimizer.router_frozen_steps) {
    network_.params().initialize(ops, static_cast<std::uint64_t>(recipe.run.seed));
    if (options.from.empty()) return;
    HostParams host(network_.params(), ops);
    host.download();
    start_from(options.from, host.table(), recipe, grid);
    host.upload(grid);
  }

  Network& network() { return network_; }
  double positions() const { return counts_.positions; }

  Series run() {
    Series series;
    for (std::int64_t i = 0; i < options_.num_warmup_steps; ++i) step();
    for (std::int64_t i = 0; i < options_.num_steps; ++i) {
      grid_.world().barrier();
      const auto begin = Clock::now();
      const StepSums sums = step();
      grid_.world().barrier();
      series.seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
      series.flops.push_back(step_flops(recipe_, counts_, sums));
      add_loads(series, sums);
    }
    series.largest_load /= static_cast<double>(options_.num_steps);
    series.kept_share /= static_cast<double>(options_.num_steps);
    return series;
  }

  // Of num_steps more steps, which take step_seconds in sum by the clock of the ops.
  std::vector<OpProfile::Entry> time_ops(double& step_seconds) {
    OpProfile profile(network_.ops().make_clock());
    step_seconds = 0.0;
    for (std::int64_t i = 0; i < options_.num_steps; ++i) {
      const std::int64_t begin = clock_.mark();
      network_.ops().set_profile(&profile);
      training_.run(batch_, counts_, step_++);
      network_.ops().set_profile(nullptr);
      step_seconds += clock_.seconds(begin, clock_.mark());
      clock_.forget();
      profile.collect();
    }
    return profile.entries();
  }

 private:
  // Returns when the device is done.
  StepSums step() {
    const StepOutcome outcome = training_.run(batch_, counts_, step_++);
    const std::int64_t end = clock_.mark();
    clock_.seconds(end, end);
    clock_.forget();
    if (!outcome.is_finite())
      throw UserError(concat("step ", step_ - 1, ": the loss or the gradient is not finite; ",
                             training_.describe_non_finite()));
    return outcome.sums;
  }

  const DeviceBenchOptions& options_;
  const Recipe& recipe_;
  ProcessGrid& grid_;
  OpClock& clock_;
  Network network_;
  TrainingStep training_;
  Batch batch_;
  BatchCounts counts_;
  std::int64_t step_;
};

Json to_json(const Series& series, double positions, double peak_of_all) {
  const double seconds = median(series.seconds);
  return {{"seconds", seconds},
          {"seconds_of_each", series.seconds},
          {"tokens_per_s", positions / seconds},
          {"flops", median(series.flops)},
          {"mfu", median(series.flops) / seconds / peak_of_all},
          {"largest_over_mean_load", series.largest_load},
          {"kept_share", series.kept_share}};
}

Json ops_json(const std::vector<OpProfile::Entry>& ops, const std::map<std::string, OpCost>& costs,
              const Peaks& peaks, double steps) {
  Json list = Json::array();
  for (const OpProfile::Entry& op : ops) {
    const double calls = static_cast<double>(op.calls) / steps, seconds = op.seconds / steps;
    Json row = {{"op", op.op}, {"calls", calls}, {"seconds", seconds}};
    const auto found = costs.find(op.op);
    // Copies of the even choice, and of rows around an exchange, have no plan.
    const bool is_planned =
        found != costs.end() && static_cast<double>(found->second.calls) == calls;
    const OpCost cost = is_planned ? found->second : OpCost{};
    const auto or_null = [&](double value) { return is_planned ? Json(value) : Json(); };
    row["flops"] = or_null(cost.flops);
    row["bytes"] = or_null(cost.bytes);
    row["roofline_seconds"] = or_null(cost.roofline_seconds);
    row["percent_of_roofline"] =
        seconds > 0.0 ? or_null(100.0 * cost.roofline_seconds / seconds) : Json();
    row["bound_by"] = !is_planned                                     ? Json()
                      : cost.flop_seconds > cost.bytes / peaks.memory ? Json("arithmetic")
                                                                      : Json("memory");
    list.push_back(std::move(row));
  }
  return list;
}

Json exchange_json(const std::vector<ExchangeSpeed>& speeds, std::int64_t ranks) {
  Json sizes = Json::array();
  for (const ExchangeSpeed& speed : speeds)
    sizes.push_back({{"bytes", speed.bytes},
                     {"seconds", speed.seconds},
                     {"algbw", speed.algbw},
                     {"busbw", speed.busbw}});
  return {{"definition", kExchangeFormula}, {"ranks", ranks}, {"sizes", sizes}};
}

void write(const Json& report, const std::string& path) {
  const std::string text = report.dump(2) + "\n";
  if (path.empty()) {
    std::fputs(text.c_str(), stdout);
    return;
  }
  std::ofstream file(path);
  file << text;
  if (!file.flush()) throw UserError(concat("--out ", path, ": cannot be written"));
}

// Everything that was measured of the recipe.
struct Measured {
  Series real, even;  // even: of a model with experts
  std::vector<OpProfile::Entry> ops;
  double op_step_seconds = 0.0;  // of the steps in which ops were timed, in sum
};

Measured measure(DeviceBench& bench, Ops& ops, const Recipe& recipe) {
  Measured measured;
  measured.real = bench.run();
  Model& model = bench.network().model();
  std::optional<EvenChoice> choice;
  if (recipe.model.num_moe_layers() > 0) {
    choice.emplace(ops, model.num_tokens(), recipe.model.num_experts);
    model.override_router_logits([&](Tensor logits) { choice->set(logits); });
    measured.even = bench.run();
  }
  measured.ops = bench.time_ops(measured.op_step_seconds);
  model.override_router_logits({});
  return measured;
}

Json recipe_json(const DeviceBenchOptions& options, const Recipe& recipe, const ProcessGrid& grid,
                 DeviceBench& bench, const Peaks& peaks, const Measured& measured) {
  const bool has_experts = recipe.model.num_moe_layers() > 0;
  const auto steps = static_cast<double>(options.num_steps);
  const RehearsalGrid planned{grid.dp(), grid.ep(), grid.tp(), grid.world_rank(), 0};
  const DType compute = recipe.run.compute_type == ComputeType::bf16 ? DType::bf16 : DType::f32;
  const double peak = static_cast<double>(planned.ranks()) * peaks.products(compute);
  double op_seconds = 0.0;
  for (const OpProfile::Entry& op : measured.ops) op_seconds += op.seconds;
  const auto series = [&](const Series& of) { return to_json(of, bench.positions(), peak); };
  return {{"recipe", options.recipe.path},
          {"overrides", options.recipe.overrides},
          {"name", recipe.name},
          {"weights", options.from.empty() ? "random" : options.from},
          {"compute_type", enum_name(recipe.run.compute_type)},
          {"grid", {{"dp", grid.dp()}, {"ep", grid.ep()}, {"tp", grid.tp()}}},
          {"parameters", count_parameters(recipe.model).total},
          {"positions_per_step", bench.positions()},
          {"positions_per_micro_batch_and_rank", bench.network().model().num_tokens()},
          {"arena_bytes", bench.network().arena().used_bytes()},
          {"flop_formula", kFlopFormula},
          {"steps",
           {{"counted", options.num_steps},
            {"real_routing", series(measured.real)},
            {"even_routing", has_experts ? series(measured.even) : Json()},
            {"real_over_even_seconds",
             has_experts ? Json(median(measured.real.seconds) / median(measured.even.seconds))
                         : Json()}}},
          {"roofline_formula", kRooflineFormula},
          {"ops", ops_json(measured.ops, planned_costs(recipe, planned, peaks), peaks, steps)},
          {"timed_step_seconds", measured.op_step_seconds / steps},
          {"outside_ops_seconds", (measured.op_step_seconds - op_seconds) / steps}};
}

int run_bench_device(const DeviceBenchOptions& options, CommandContext& context) {
  MpiEnvironment& mpi = context.mpi;
  const Recipe recipe = load(options, mpi.world_size());
  ProcessGrid grid(mpi.world(), options.grid.ep_of(recipe), options.grid.tp_of(recipe));
  grid.check(recipe);
  const auto ops = make_ops(options.device, mpi);
  const DeviceGroups groups(options.device, grid, *ops);
  const Peaks peaks = find_peaks(options, *ops, mpi);
  const std::unique_ptr<OpClock> clock = ops->make_clock();
  Json report = {{"command", context.command_line},
                 {"machine", describe_machine(*ops, options, context)},
                 {"peaks",
                  {{"f32", peaks.f32},
                   {"bf16", peaks.bf16},
                   {"memory", peaks.memory},
                   {"source", peaks.source}}}};
  report["all_to_all"] = exchange_json(
      measure_exchange(*ops, *clock, grid.world(), options.device.collectives, options.exchange),
      mpi.world_size());
  DeviceBench bench(options, recipe, grid, *ops, *clock);
  const Measured measured = measure(bench, *ops, recipe);
  if (!grid.is_root()) return kExitSuccess;
  report["recipes"] = Json::array();
  report["recipes"].push_back(recipe_json(options, recipe, grid, bench, peaks, measured));
  write(report, options.out);
  return kExitSuccess;
}

void add_measure_options(CLI::App& command, DeviceBenchOptions& options) {
  command.add_option("--steps", options.num_steps, "counted steps of each kind")
      ->check(whole_number(1))
      ->capture_default_str();
  command.add_option("--warmup", options.num_warmup_steps, "steps before them")
      ->check(whole_number(0))
      ->capture_default_str();
  command
      .add_option("--rows", options.rows_per_rank,
                  "rows of a step on each data rank, in place of the recipe's data.batch_rows")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->check(whole_number(1));
  command.add_option("--from", options.from,
                     "run or checkpoint whose weights, and so whose routing, are measured "
                     "(default: random weights)");
  command.add_option("--peak-f32", options.peaks.f32, "FLOP/s of f32 products of one device")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--peak-bf16", options.peaks.bf16, "FLOP/s of dense bf16 products of one device")
      ->check(CLI::PositiveNumber);
  command.add_option("--peak-memory", options.peaks.memory, "bytes/s of one device's memory")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--exchange-least", options.exchange.least,
                  "bytes that a rank sends in the smallest exchange between all ranks")
      ->check(whole_number(1))
      ->capture_default_str();
  command
      .add_option("--exchange-most", options.exchange.most,
                  "bytes of the largest; sizes grow by 4. Less than --exchange-least: none")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->check(whole_number(0))
      ->capture_default_str();
  command.add_option("--exchange-calls", options.exchange.calls, "counted calls of each size")
      ->check(whole_number(1))
      ->capture_default_str();
  command.add_option("--out", options.out, "file for the JSON (default: stdout)");
}

}  // namespace

void register_bench_device(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<DeviceBenchOptions>();
  CLI::App* command = app.add_subcommand(
      "bench-device",
      "time training steps, ops and the exchange on a device beside their peaks; prints JSON");
  add_recipe_options(*command, options->recipe);
  add_grid_options(*command, options->grid);
  add_device_options(*command, options->device);
  add_measure_options(*command, *options);
  command->callback([&context, options] {
    context.run = [&context, options] { return run_bench_device(*options, context); };
  });
}

}  // namespace openmoe
