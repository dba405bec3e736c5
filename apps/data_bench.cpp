// openmoe data bench: how fast batches are made, with nothing else going on. One thread, no
// prefetching; speeds are per second of that thread's processor time.
#include <ctime>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/command.h"
#include "apps/mixtures.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "data/batch_stream.h"

namespace openmoe {
namespace {

struct BenchOptions {
  RecipeOptions recipe;
  std::string data_folder;
  std::int64_t first_step = 0;
  std::int64_t num_steps = 50;
  bool json = false;
};

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Pass {
  double cpu_seconds = 0.0;
  double seconds = 0.0;
  std::int64_t positions = 0;
  std::int64_t real_tokens = 0;
  std::int64_t loss_tokens = 0;
};

Pass read_steps(BatchStream& stream, const BenchOptions& options) {
  Pass pass;
  Batch batch;
  const std::int64_t rows = stream.recipe().data.batch_rows;
  for (std::int64_t i = 0; i < options.num_steps; ++i) {
    const double cpu = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    const double wall = seconds_of(CLOCK_MONOTONIC);
    stream.read(options.first_step + i, 0, rows, batch);
    pass.cpu_seconds += seconds_of(CLOCK_THREAD_CPUTIME_ID) - cpu;
    pass.seconds += seconds_of(CLOCK_MONOTONIC) - wall;
    pass.positions += rows * batch.sequence_length;
    for (const std::int32_t segment : batch.segment_ids) pass.real_tokens += segment > 0;
    for (const float weight : batch.loss_weights) pass.loss_tokens += weight > 0.0f;
  }
  return pass;
}

int run_bench(const BenchOptions& options, CommandContext& context) {
  if (context.mpi.world_rank() != 0) return kExitSuccess;
  if (options.first_step < 0 || options.num_steps < 1)
    throw UserError(concat("--step ", options.first_step, " --steps ", options.num_steps,
                           ": steps count from 0, and at least one is needed"));
  const Recipe recipe = load_recipe(options.recipe.path, options.recipe.overrides);
  BatchStream stream(recipe, options.data_folder, load_mixtures(recipe, options.recipe.path));
  const Pass first = read_steps(stream, options);  // its blocks are verified
  Pass best = read_steps(stream, options);
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Pass pass = read_steps(stream, options);
    if (pass.cpu_seconds < best.cpu_seconds) best = pass;
  }
  const auto per_second = [](std::int64_t count, double seconds) {
    return static_cast<double>(count) / seconds;
  };
  const double waste =
      1.0 - static_cast<double>(best.real_tokens) / static_cast<double>(best.positions);
  if (options.json) {
    const nlohmann::ordered_json report = {
        {"positions", best.positions},
        {"real_tokens", best.real_tokens},
        {"loss_tokens", best.loss_tokens},
        {"padding_share", waste},
        {"cpu_seconds", best.cpu_seconds},
        {"seconds", best.seconds},
        {"positions_per_cpu_second", per_second(best.positions, best.cpu_seconds)},
        {"positions_per_cpu_second_first_pass", per_second(first.positions, first.cpu_seconds)}};
    std::printf("%s\n", report.dump().c_str());
    return kExitSuccess;
  }
  std::printf(
      "%lld steps, %lld positions, %.2f%% of them padding\n"
      "%.1f million positions per second of one core; %.1f on the first pass, which verifies "
      "checksums\n",
      static_cast<long long>(options.num_steps), static_cast<long long>(best.positions),
      100.0 * waste, 1e-6 * per_second(best.positions, best.cpu_seconds),
      1e-6 * per_second(first.positions, first.cpu_seconds));
  return kExitSuccess;
}

}  // namespace

void register_data_bench(CLI::App& data, CommandContext& context) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App* command =
      data.add_subcommand("bench", "how fast batches are made, on one core and in isolation");
  add_recipe_options(*command, options->recipe);
  command
      ->add_option("--data", options->data_folder, "folder of token shards, from `openmoe prepare`")
      ->required();
  command->add_option("--step", options->first_step, "first step to read")->capture_default_str();
  command->add_option("--steps", options->num_steps, "number of steps to read, four times")
      ->capture_default_str();
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &context] {
    context.run = [options, &context] { return run_bench(*options, context); };
  });
}

}  // namespace openmoe
