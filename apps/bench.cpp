// `openmoe bench RECIPE`: time, memory and share of the machine's peak of whole training steps on
// random tokens. No data needed.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/bench_step.h"
#include "apps/command.h"
#include "apps/network.h"
#include "apps/step_agreement.h"
#include "apps/trainer.h"
#include "apps/training_step.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_io.h"
#include "core/cpu/cpu_ops.h"
#include "core/cpu/peak.h"
#include "core/op_profile.h"
#include "parallel/process_grid.h"

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPeakSeconds = 0.05;

struct BenchOptions {
  RecipeOptions recipe;
  GridOptions grid;
  std::int64_t num_steps = 5;
  std::int64_t num_warmup_steps = 2;
  bool json = false;
};

struct Sample {
  double seconds = 0.0;
  double flops = 0.0;  // useful arithmetic of all ranks: experts by kept slots
  double peak = 0.0;   // FLOP/s of all ranks, mean of just before and just after
};

std::int64_t memory_of_parameters(const Arena& arena) {
  return arena.used_bytes(MemoryCategory::parameters) +
         arena.used_bytes(MemoryCategory::gradients) + arena.used_bytes(MemoryCategory::optimizer);
}

int run_bench(const BenchOptions& options, CommandContext& context) {
  const Recipe recipe = load_recipe(options.recipe.path, options.recipe.overrides);
  ProcessGrid grid(context.mpi.world(), options.grid.ep_of(recipe), options.grid.tp_of(recipe));
  grid.check(recipe);
  const std::int64_t rows = recipe.data.batch_rows / grid.num_data_ranks();
  if (micro_batch_rows(recipe, grid.num_data_ranks()) != rows)
    throw UserError(
        "bench measures one micro-batch a step: leave parallel.micro_batch_rows at 0 and lower "
        "data.batch_rows");
  const auto ops = make_cpu_ops();
  Network network(*ops, grid, recipe, rows, true);
  network.params().initialize(*ops, static_cast<std::uint64_t>(recipe.run.seed));
  TrainingStep training(network, grid, recipe);
  const Batch batch = random_batch(recipe, rows, grid.data_rank());
  const BatchCounts counts = agree_on_step(batch, recipe, grid, 0).counts;
  const auto measure_peak = [&] {
    grid.world().barrier();
    double peak[] = {cpu::measure_peak_flops(kPeakSeconds)};
    grid.world().all_reduce_sum(std::span<double>(peak));
    return peak[0];
  };

  OpProfile profile(ops->make_clock());
  std::vector<Sample> samples;
  for (std::int64_t step = 0; step < options.num_warmup_steps + options.num_steps; ++step) {
    const bool counted = step >= options.num_warmup_steps;
    Sample sample;
    sample.peak = 0.5 * measure_peak();
    grid.world().barrier();
    ops->set_profile(counted ? &profile : nullptr);
    const auto begin = Clock::now();
    const StepSums sums = training.run(batch, counts, step).sums;
    grid.world().barrier();
    sample.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    ops->set_profile(nullptr);
    sample.peak += 0.5 * measure_peak();
    sample.flops = step_flops(recipe, counts, sums);
    if (counted) samples.push_back(sample);
  }
  if (!grid.is_root()) return kExitSuccess;

  std::vector<double> seconds, shares, peaks, flops;
  double total_seconds = 0.0;
  for (const Sample& sample : samples) {
    seconds.push_back(sample.seconds);
    shares.push_back(sample.flops / sample.seconds / sample.peak);
    peaks.push_back(sample.peak);
    flops.push_back(sample.flops);
    total_seconds += sample.seconds;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double peak_rss_mb = static_cast<double>(usage.ru_maxrss) / 1024.0;
  const double arena_mb = static_cast<double>(network.arena().used_bytes()) / (1 << 20);
  if (options.json) {
    nlohmann::ordered_json out = {{"tokens_per_s", counts.positions / median(seconds)},
                                  {"step_ms", 1e3 * median(seconds)},
                                  {"gflop_per_step", median(flops) / 1e9},
                                  {"gflops", median(flops) / median(seconds) / 1e9},
                                  {"peak_gflops", median(peaks) / 1e9},
                                  {"share_of_peak", median(shares)},
                                  {"peak_rss_mb", peak_rss_mb},
                                  {"arena_mb", arena_mb},
                                  {"parameters", network.params().num_parameters()},
                                  {"threads", context.num_threads},
                                  {"ranks", context.mpi.world_size()},
                                  {"compute_type", enum_name(recipe.run.compute_type)},
                                  {"ops", nlohmann::ordered_json::array()},
                                  {"parts", nlohmann::ordered_json::array()}};
    const double own_mb = static_cast<double>(memory_of_parameters(network.arena())) / (1 << 20);
    out["parameters_gradients_optimizer_mb"] = own_mb;
    out["beyond_them_mb"] = peak_rss_mb - own_mb;
    const auto steps = static_cast<double>(samples.size());
    double product_seconds = 0.0;
    const auto add = [&](const char* list, const OpProfile::Entry& entry) {
      out[list].push_back({{"name", entry.op},
                           {"calls", static_cast<double>(entry.calls) / steps},
                           {"ms", 1e3 * entry.seconds / steps},
                           {"products_ms", 1e3 * entry.product_seconds / steps},
                           {"share", entry.seconds / total_seconds},
                           {"gflops", entry.flops / entry.seconds / 1e9}});
    };
    for (const OpProfile::Entry& entry : profile.entries()) {
      add("ops", entry);
      product_seconds += entry.product_seconds;
    }
    for (const OpProfile::Entry& entry : profile.parts()) add("parts", entry);
    out["share_outside_products"] = 1.0 - product_seconds / total_seconds;
    std::printf("%s\n", out.dump(2).c_str());
    return kExitSuccess;
  }
  const double ranks = context.mpi.world_size();
  std::printf("%s: %lld ranks x %d threads, %.0f positions a step\n", recipe.name.c_str(),
              static_cast<long long>(context.mpi.world_size()), context.num_threads,
              counts.positions);
  std::printf("%s",
              profile
                  .table(options.num_steps, total_seconds / static_cast<double>(samples.size()),
                         median(peaks) / ranks)
                  .c_str());
  std::printf(
      "%.0f tokens/s, step %.1f ms, %.1f useful GFLOP, %.1f GFLOP/s of %.1f peak = %.3f (medians "
      "of %zu)\n",
      counts.positions / median(seconds), 1e3 * median(seconds), median(flops) / 1e9,
      median(flops) / median(seconds) / 1e9, median(peaks) / 1e9, median(shares), samples.size());
  std::printf(
      "memory: %.0f MiB resident at most, of it %.0f MiB parameters, gradients and optimizer "
      "(rank 0; arena %.0f MiB)\n",
      peak_rss_mb, static_cast<double>(memory_of_parameters(network.arena())) / (1 << 20),
      arena_mb);
  return kExitSuccess;
}

}  // namespace

void register_bench(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App* command =
      app.add_subcommand("bench", "time training steps of a recipe on random tokens, op by op");
  add_recipe_options(*command, options->recipe);
  add_grid_options(*command, options->grid);
  command->add_option("--steps", options->num_steps, "counted steps")->check(CLI::PositiveNumber);
  command->add_option("--warmup", options->num_warmup_steps, "steps before them")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", options->json, "print JSON");
  command->callback([&context, options] {
    context.run = [&context, options] { return run_bench(*options, context); };
  });
}

}  // namespace openmoe
