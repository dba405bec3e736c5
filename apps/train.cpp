// `openmoe train RECIPE --data DIR --out RUN`: pretrain or continue.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/agree.h"
#include "apps/checkpoint.h"
#include "apps/command.h"
#include "apps/decode_model.h"
#include "apps/device.h"
#include "apps/device_peaks.h"
#include "apps/host_params.h"
#include "apps/mixtures.h"
#include "apps/network.h"
#include "apps/run_observers.h"
#include "apps/start_weights.h"
#include "apps/stop_signals.h"
#include "apps/trainer.h"
#include "apps/training_step.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_io.h"
#include "core/cpu/peak.h"
#include "core/op_profile.h"
#include "cuda/device_ops.h"
#include "data/batch_stream.h"
#include "parallel/observed_communicator.h"
#include "parallel/process_grid.h"
#include "parallel/watchdog.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr double kPeakSeconds = 0.1;  // how long the machine's arithmetic peak is measured

struct TrainOptions {
  RecipeOptions recipe;
  std::string data_folder;
  std::string run_folder;
  GridOptions grid;
  bool resume = false;
  std::string trace_folder;      // "": no trace
  std::int64_t trace_step = -1;  // -1: the third of this process
  std::string from;              // run or checkpoint to start from; "": none
  DeviceOptions device;
};

// Prepares the run folder on rank 0. Returns the checkpoint to resume from, empty to start anew.
std::string open_run_folder(const TrainOptions& options, Communicator& world) {
  std::string checkpoint;
  on_root(world, [&] {
    std::error_code error;
    fs::create_directories(options.run_folder, error);
    if (error)
      throw UserError("--out " + options.run_folder +
                      ": cannot create the folder: " + error.message());
    checkpoint = options.resume ? latest_checkpoint(options.run_folder) : "";
    const bool has_run = fs::exists(options.run_folder + "/metrics.jsonl");
    if (!options.resume && (has_run || !latest_checkpoint(options.run_folder).empty()))
      throw UserError("--out " + options.run_folder +
                      " already holds a run: add --resume to continue it, or name another folder");
    if (options.resume && checkpoint.empty() && has_run)
      std::printf("no checkpoint in %s yet: starting over from step 0\n",
                  options.run_folder.c_str());
  });
  world.broadcast(checkpoint, 0);
  return checkpoint;
}

// A checkpoint continues only the same model on the same data; other keys may change and are named.
void check_resumable(const Recipe& recipe, const CheckpointMeta& meta,
                     const std::string& fingerprint, const std::string& checkpoint, bool is_root) {
  // Read and printed again: it may lack keys that are younger than it.
  const auto saved =
      nlohmann::json::parse(to_json(parse_recipe(meta.recipe_json, checkpoint + ": its recipe")));
  const auto current = nlohmann::json::parse(to_json(recipe));
  if (saved.at("model") != current.at("model"))
    throw UserError(checkpoint + ": its model differs from the recipe's: " +
                    nlohmann::json::diff(saved.at("model"), current.at("model")).dump() +
                    "; resume with the recipe it was trained with (recipe.json in the run folder)");
  if (meta.data_fingerprint != fingerprint)
    throw UserError(checkpoint +
                    ": it was trained on other data (tokenizer, shards or mixtures differ: " +
                    meta.data_fingerprint + " then, " + fingerprint +
                    " now); give --data the folder of that run");
  if (!is_root) return;
  for (const auto& change : nlohmann::json::diff(saved, current))
    std::printf("changed since the checkpoint: %s\n", change.at("path").get<std::string>().c_str());
}

void check_steps_left(const std::string& source, std::int64_t step, const Recipe& recipe) {
  if (step > recipe.run.num_steps)
    throw UserError(concat(source, " is of step ", step, ", beyond run.num_steps = ",
                           recipe.run.num_steps, ": nothing to do; raise run.num_steps"));
}

void print_header(const Recipe& recipe, const ProcessGrid& grid, Network& network,
                  const CommandContext& context) {
  const ParameterCounts counts = count_parameters(recipe.model);
  std::printf("%s\n", to_json(recipe).c_str());
  std::printf("grid        %lld data ranks = dp %lld x ep %lld, tp %lld; %d threads per rank\n",
              static_cast<long long>(grid.num_data_ranks()), static_cast<long long>(grid.dp()),
              static_cast<long long>(grid.ep()), static_cast<long long>(grid.tp()),
              context.num_threads);
  std::printf("device      %s\n", describe_device(network.ops(), context.mpi).c_str());
  if (network.ops().device() == Device::cuda)
    std::printf("attention   %s\n", network.attention().c_str());
  std::printf(
      "parameters  %lld total, %lld active per token, %lld active with embedding and head\n",
      static_cast<long long>(counts.total), static_cast<long long>(counts.active),
      static_cast<long long>(counts.active_with_embedding));
  std::printf("FLOPs       %.4g per token (training, useful)\n", flops_per_token(recipe));
  std::printf("capacity    %lld slots per expert and group of %lld tokens\n",
              static_cast<long long>(recipe.routing.capacity(recipe.model.num_experts, true)),
              static_cast<long long>(recipe.routing.group_tokens));
  if (grid.ep() > 1 && recipe.model.num_moe_layers() > 0) {
    const ExchangeRoute& route = network.route();
    std::printf("exchange    %s", std::string(enum_name(route.kind)).c_str());
    if (route.kind == ExchangeKind::two_level)
      std::printf(", %lld ranks per node", static_cast<long long>(route.ranks_per_node));
    if (route.num_parts > 1)
      std::printf(", in %lld parts", static_cast<long long>(route.num_parts));
    std::printf("\n");
  }
  std::printf("memory of rank 0\n%s", network.arena().table().c_str());
  std::fflush(stdout);
}

// The first steps of a process touch their memory for the first time, so the third is traced.
std::int64_t traced_step(const TrainOptions& options, std::int64_t first_step,
                         const Recipe& recipe) {
  const std::int64_t last = recipe.run.num_steps - 1;
  const std::int64_t step =
      options.trace_step >= 0 ? options.trace_step : std::min(last, first_step + 2);
  if (first_step <= step && step <= last) return step;
  throw UserError(concat("--trace-step: found ", step, ", allowed: a step of this process, ",
                         first_step, " to ", last));
}

// FLOP/s that this rank's speed is a share of: measured of CPUs, of devices by their data sheet; 0
// for a device without one.
double peak_flops_of(const Ops& ops, const Recipe& recipe) {
  if (ops.device() == Device::host) return cpu::measure_peak_flops(kPeakSeconds);
  const Peaks peaks = data_sheet_peaks(current_cuda_device().name);
  return recipe.run.compute_type == ComputeType::bf16 ? peaks.bf16 : peaks.f32;
}

// Null where the recipe or a single rank wants none.
std::unique_ptr<Watchdog> start_watchdog(const Recipe& recipe, ProcessGrid& grid,
                                         RunObservers& observers) {
  constexpr double kMaxSilence = 20.0;  // seconds; a job with a killed rank ends within 30
  observers.activity.enter_phase("starting", /*is_patient=*/true);
  if (recipe.run.watchdog_seconds == 0 || grid.world().size() == 1) return nullptr;
  StuckLimits limits;
  limits.idle = static_cast<double>(recipe.run.watchdog_seconds);
  limits.silence = std::min(kMaxSilence, limits.idle);
  return std::make_unique<Watchdog>(grid.world(), grid.coordinates(), observers.collectives,
                                    observers.activity, limits);
}

// What a run begins with beside its weights.
struct StartState {
  std::int64_t step = 0;
  std::int64_t positions = 0;
  std::string trainer_state;  // CheckpointMeta::trainer_state
};

// Fills the network's parameters: from `checkpoint`, from another run, or anew.
StartState take_weights(const TrainOptions& options, const std::string& checkpoint,
                        const Recipe& recipe, const BatchStream& stream, ProcessGrid& grid,
                        Network& network) {
  StartState start;
  Ops& ops = network.ops();
  if (!checkpoint.empty()) {
    // Imported weights come without optimizer statistics; the first update overwrites them anyway
    // (its decay is 0).
    const bool is_import = read_checkpoint_meta(checkpoint).data_fingerprint == kImportedWeights;
    HostParams host(network.params(), ops);
    const CheckpointMeta meta = load_checkpoint(checkpoint, host.table(), grid, !is_import);
    host.upload(grid);
    check_resumable(recipe, meta, is_import ? kImportedWeights : stream.fingerprint(), checkpoint,
                    grid.is_root());
    check_steps_left(checkpoint, meta.step, recipe);
    return {meta.step, meta.positions, meta.trainer_state};
  }
  network.params().initialize(ops, static_cast<std::uint64_t>(recipe.run.seed));
  if (options.from.empty()) return start;
  HostParams host(network.params(), ops);
  host.download();
  const CheckpointMeta source = start_from(options.from, host.table(), recipe, grid);
  host.upload(grid);
  if (recipe.start.optimizer == OptimizerStart::continued) {
    start = {source.step, source.positions, ""};
    check_steps_left(options.from, start.step, recipe);
  }
  return start;
}

int run_train(const TrainOptions& options, CommandContext& context) {
  const StopSignals signals;  // from the start: what arrives before the first step counts too
  MpiEnvironment& mpi = context.mpi;
  const Recipe stated = load_recipe(options.recipe.path, options.recipe.overrides);
  check_trainable(stated);
  RunObservers observers;
  const auto world = make_observed_communicator(mpi.world(), observers.collectives);
  ProcessGrid grid(*world, options.grid.ep_of(stated), options.grid.tp_of(stated));
  grid.check(stated);
  const auto watchdog = start_watchdog(stated, grid, observers);
  BatchStream stream(stated, options.data_folder, load_mixtures(stated, options.recipe.path));
  const Recipe& recipe = stream.recipe();  // with ends of phases in tokens turned into steps
  const std::string checkpoint = open_run_folder(options, *world);

  const auto ops = make_ops(options.device, mpi);
  ops->set_profile(&observers.ops);
  const DeviceGroups device_groups(options.device, grid, *ops);
  Network network(*ops, grid, recipe, micro_batch_rows(recipe, grid.num_data_ranks()), true);
  if (watchdog) watchdog->learn_groups(*world);  // of the exchange of tokens
  const StartState start = take_weights(options, checkpoint, recipe, stream, grid, network);

  std::optional<RunLog> log;
  std::optional<Progress> progress;
  on_root(*world, [&] {
    log.emplace(options.run_folder, start.step);
    log->write_recipe(to_json(recipe));
    keep_mixtures(recipe, options.recipe.path, options.run_folder);
    keep_tokenizer(stream.tokenizer(), options.run_folder);
    print_header(recipe, grid, network, context);
    if (!checkpoint.empty())
      std::printf("resuming from %s at step %lld\n", checkpoint.c_str(),
                  static_cast<long long>(start.step));
    progress.emplace(recipe.run.num_steps, start.step);
  });
  Trainer trainer(network, grid, recipe, stream, options.run_folder, signals, observers,
                  log ? &*log : nullptr, progress ? &*progress : nullptr);
  world->barrier();  // all ranks measure at the same time
  double peak_flops[] = {peak_flops_of(*ops, recipe)};
  world->all_reduce_sum(std::span<double>(peak_flops));
  trainer.set_peak_flops(peak_flops[0]);
  trainer.restore(start.trainer_state);
  if (!options.trace_folder.empty())
    trainer.trace_step(traced_step(options, start.step, recipe), options.trace_folder);
  OpProfile profile(ops->make_clock());
  if (recipe.run.profile) observers.ops.add_observer(profile);
  if (checkpoint.empty() && !options.from.empty()) trainer.save_start(start.step, start.positions);
  const auto begin = std::chrono::steady_clock::now();
  const int stop_signal = trainer.run(start.step, start.positions);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  ops->set_profile(nullptr);
  if (stop_signal != 0) return StopSignals::exit_code_of(stop_signal);
  const std::int64_t num_steps = recipe.run.num_steps - start.step;
  if (recipe.run.profile && grid.is_root() && num_steps > 0)
    std::printf("time of rank 0 by op, validation and checkpoints outside ops\n%s",
                profile
                    .table(num_steps, elapsed.count() / static_cast<double>(num_steps),
                           peak_flops[0] / static_cast<double>(mpi.world_size()))
                    .c_str());
  return kExitSuccess;
}

}  // namespace

void register_train(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand("train", "pretrain a model, or continue a run");
  add_recipe_options(*command, options->recipe);
  command
      ->add_option("--data", options->data_folder, "folder of token shards, from `openmoe prepare`")
      ->required();
  command->add_option("--out", options->run_folder, "run folder: metrics, recipe, checkpoints")
      ->required();
  add_grid_options(*command, options->grid);
  add_device_options(*command, options->device);
  command->add_option("--from", options->from,
                      "run or checkpoint whose weights a new run starts from, as the recipe's "
                      "\"start\" says");
  command->add_option("--trace", options->trace_folder,
                      "folder for the trace of one step, a file per rank for Perfetto or "
                      "chrome://tracing");
  command
      ->add_option("--trace-step", options->trace_step,
                   "the step to trace (default: the third of this process)")
      ->check(CLI::NonNegativeNumber)
      ->needs("--trace");
  command->add_flag("--resume", options->resume, "continue from the last checkpoint in --out");
  command->footer(concat(
      "SIGTERM or SIGUSR1 to any rank (or SIGUSR1 to mpirun) stops the whole job before its next "
      "step: it saves a\ncheckpoint and ends with exit code ",
      kExitRequeue,
      ", for a queue to start it again with --resume. SIGINT to a rank does\nso with "
      "exit code 130. Other exit codes: 0 done, 1 a fault, 2 wrong input."));
  command->callback([&context, options] {
    context.run = [&context, options] { return run_train(*options, context); };
  });
}

}  // namespace openmoe
