#include "apps/evaluate_loss.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "apps/agree.h"
#include "apps/checkpoint.h"
#include "apps/checkpoint_reader.h"
#include "apps/held_out.h"
#include "apps/host_params.h"
#include "apps/network.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_io.h"
#include "data/batch_stream.h"
#include "data/tokenizer.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMixture = "evaluate";

std::vector<std::string> all_sources(const std::string& data_folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(data_folder, error))
    if (entry.is_directory()) names.push_back(entry.path().filename());
  if (error) throw UserError("--data " + data_folder + ": cannot be read: " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

// The checkpoint's recipe with one phase of the objective that is asked for, and batches of the
// fewest whole groups.
Recipe evaluation_recipe(const LossOptions& options, const std::string& checkpoint,
                         std::int64_t num_ranks) {
  Recipe recipe =
      parse_recipe(read_checkpoint_meta(checkpoint).recipe_json, checkpoint + ": its recipe");
  PhaseConfig phase;
  parse_enum(options.objective, phase.objective);
  parse_enum(options.packing, phase.packing);
  phase.mixture = kMixture;
  recipe.data.phases = {phase};
  const std::int64_t T = recipe.data.sequence_length, G = recipe.routing.group_tokens;
  const std::int64_t rows = recipe.model.num_moe_layers() > 0 ? G / std::gcd(G, T) : 1;
  recipe.data.batch_rows = rows * num_ranks;
  recipe.parallel.micro_batch_rows = rows;
  recipe.run.validation_rows = options.num_rows;
  return recipe;
}

// Bytes of text that a token stands for; none for eos, padding and sentinels.
std::int64_t bytes_of(const Tokenizer& tokenizer, std::int32_t id) {
  if (id <= Tokenizer::kEos || id >= tokenizer.num_pieces()) return 0;
  const std::string piece = tokenizer.piece(id);
  if (piece.size() == 6 && piece.starts_with("<0x")) return 1;
  auto bytes = static_cast<std::int64_t>(piece.size());
  for (std::size_t at = 0; (at = piece.find("\u2581", at)) != std::string::npos; at += 3)
    bytes -= 2;
  return bytes;
}

}  // namespace

nlohmann::ordered_json evaluate_loss(const LossOptions& options, CommandContext& context) {
  ProcessGrid grid(context.mpi.world(), options.ep, options.tp);
  std::string checkpoint;
  Recipe recipe;
  std::vector<std::string> sources = options.sources;
  on_every_rank(grid.world(), [&] {
    checkpoint = require_checkpoint(options.folder);
    recipe = evaluation_recipe(options, checkpoint, grid.num_data_ranks());
    if (sources.empty()) sources = all_sources(options.data_folder);
    if (sources.empty()) throw UserError("--data " + options.data_folder + ": holds no sources");
  });
  grid.check(recipe);
  Mixture mixture;
  mixture.name = kMixture;
  for (const std::string& source : sources) mixture.sources.push_back({source, 1.0});
  mixture.weight_sum = static_cast<double>(sources.size());
  BatchStream stream(recipe, options.data_folder, {mixture});

  const auto ops = make_ops(options.device, context.mpi);
  const DeviceGroups device_groups(options.device, grid, *ops);
  Network network(*ops, grid, recipe, recipe.parallel.micro_batch_rows, false);
  HostParams host(network.params(), *ops);
  load_checkpoint(checkpoint, host.table(), grid, false);
  host.upload(grid);

  auto results = nlohmann::ordered_json::array();
  for (const std::string& source : stream.validation_sources(0)) {
    std::int64_t bytes[] = {0};
    const HeldOutResult held_out = evaluate_held_out(
        network, grid, stream, 0, source, options.num_rows, [&](const Batch& batch) {
          for (std::size_t i = 0; i < batch.targets.size(); ++i)
            if (batch.loss_weights[i] > 0.0f)
              bytes[0] += bytes_of(stream.tokenizer(), batch.targets[i]);
        });
    grid.data().all_reduce_sum(std::span<std::int64_t>(bytes));
    const StepLosses& losses = held_out.losses;
    results.push_back({{"source", source},
                       {"loss", losses.cross_entropy},
                       {"perplexity", std::exp(losses.cross_entropy)},
                       {"bits_per_byte", held_out.sums.cross_entropy / std::log(2.0) /
                                             std::max(1.0, static_cast<double>(bytes[0]))},
                       {"accuracy", losses.accuracy},
                       {"loss_tokens", std::llround(held_out.counts.loss_tokens)},
                       {"bytes", bytes[0]}});
  }
  if (results.empty())
    throw UserError(
        "--data " + options.data_folder +
        ": none of its sources has held-out documents; prepare them with --validation-fraction");
  return results;
}

}  // namespace openmoe
