#include "apps/observe_routing.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "apps/agree.h"
#include "apps/checkpoint.h"
#include "apps/host_params.h"
#include "apps/network.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/enum_names.h"
#include "core/config/recipe_io.h"

namespace openmoe {
namespace {

Recipe observation_recipe(const std::string& checkpoint, const ObserveOptions& options,
                          std::int64_t length, std::int64_t num_ranks) {
  Recipe recipe =
      parse_recipe(read_checkpoint_meta(checkpoint).recipe_json, checkpoint + ": its recipe");
  if (recipe.model.num_moe_layers() == 0)
    throw UserError(checkpoint + ": is a dense model, which routes nothing");
  recipe.data.sequence_length = length;
  const std::int64_t G = recipe.routing.group_tokens;
  const std::int64_t rows = G / std::gcd(G, length);
  recipe.data.batch_rows = rows * num_ranks;
  recipe.parallel.micro_batch_rows = rows;
  if (!options.compute_type.empty()) parse_enum(options.compute_type, recipe.run.compute_type);
  return recipe;
}

// What one block sends to rank 0: choices and gates of every layer, losses of every token.
class BlockRecord {
 public:
  BlockRecord(Network& network, std::int64_t num_tokens)
      : network_(network), choice_(static_cast<std::size_t>(2 * num_tokens)) {
    gate_.resize(choice_.size());
    loss_.resize(static_cast<std::size_t>(num_tokens));
  }

  std::string evaluate(const Batch& batch, StepSums& sums) {
    const std::int64_t N = network_.model().num_tokens();
    network_.model().evaluate(batch, sums,
                              host_view(loss_.data(), {batch.num_rows, batch.sequence_length}));
    std::string bytes;
    append(bytes, loss_);
    for (const MoeActivations* layer : network_.model().moe_activations()) {
      network_.ops().copy(host_view(choice_.data(), {N, 2}), layer->router.choice);
      network_.ops().copy(host_view(gate_.data(), {N, 2}), layer->router.gate);
      append(bytes, choice_);
      append(bytes, gate_);
    }
    return bytes;
  }

  // Adds the first `count` tokens of each of `rows` rows of a block.
  static void take(const std::string& bytes, std::int64_t block_tokens, std::int64_t offset,
                   std::int64_t count, RoutingTrace& trace, double& loss) {
    const char* at = bytes.data();
    for (std::int64_t n = offset; n < offset + count; ++n) loss += number<float>(at, n);
    at += block_tokens * static_cast<std::int64_t>(sizeof(float));
    for (LayerTrace& layer : trace.layers) {
      for (std::int64_t i = 2 * offset; i < 2 * (offset + count); ++i)
        layer.choice.push_back(static_cast<std::uint16_t>(number<std::int32_t>(at, i)));
      at += 2 * block_tokens * static_cast<std::int64_t>(sizeof(std::int32_t));
      for (std::int64_t i = 2 * offset; i < 2 * (offset + count); ++i)
        layer.gate.push_back(number<float>(at, i));
      at += 2 * block_tokens * static_cast<std::int64_t>(sizeof(float));
    }
  }

 private:
  template <typename T>
  static T number(const char* bytes, std::int64_t index) {
    T value;
    std::memcpy(&value, bytes + index * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    return value;
  }
  template <typename T>
  static void append(std::string& bytes, const std::vector<T>& values) {
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }

  Network& network_;
  std::vector<std::int32_t> choice_;
  std::vector<float> gate_, loss_;
};

}  // namespace

ObservedRouting observe_routing(const std::string& checkpoint, const StudyText& text,
                                const ObserveOptions& options, CommandContext& context) {
  ProcessGrid grid(context.mpi.world(), options.ep, 1);
  Recipe recipe;
  on_every_rank(grid.world(), [&] {
    recipe = observation_recipe(checkpoint, options, text.length(), grid.num_data_ranks());
  });
  ObservedRouting observed;
  observed.routing = recipe.routing;
  if (options.dropless) recipe.routing.capacity_counts = CapacityCounts::dropless;
  grid.check(recipe);

  const auto ops = make_ops(options.device, context.mpi);
  const DeviceGroups device_groups(options.device, grid, *ops);
  const std::int64_t rows = recipe.parallel.micro_batch_rows, T = text.length();
  Network network(*ops, grid, recipe, rows, false);
  HostParams host(network.params(), *ops);
  load_checkpoint(checkpoint, host.table(), grid, false);
  host.upload(grid);

  RoutingTrace& trace = observed.trace;
  trace = text.trace();
  trace.num_experts = recipe.model.num_experts;
  trace.top_k = 2;
  for (std::int64_t layer = 0; layer < recipe.model.num_layers; ++layer)
    if (recipe.model.is_moe_layer(layer)) trace.layers.push_back({layer, {}, {}});
  for (const std::string& source : trace.sources) observed.losses.push_back({source, 0.0, 0});

  const std::vector<std::int64_t> blocks = text.blocks(rows);
  const auto ranks = static_cast<std::size_t>(grid.num_data_ranks());
  BlockRecord record(network, rows * T);
  StepSums sums(recipe.model.num_moe_layers(), recipe.model.num_experts);
  Batch batch;
  for (std::size_t first = 0; first < blocks.size(); first += ranks) {
    const std::size_t mine = first + static_cast<std::size_t>(grid.data_rank());
    if (mine < blocks.size())
      text.fill(batch, blocks[mine], text.end_of_block(blocks[mine], rows), rows);
    else
      batch.resize(rows, T);  // padding: every rank takes part in every exchange
    const std::vector<std::string> gathered = grid.data().all_gather(record.evaluate(batch, sums));
    if (!grid.is_root()) continue;
    for (std::size_t b = first; b < std::min(blocks.size(), first + ranks); ++b)
      for (std::int64_t row = blocks[b]; row < text.end_of_block(blocks[b], rows); ++row) {
        const auto at = static_cast<std::size_t>(row);
        const std::int64_t count = trace.sequence_offsets[at + 1] - trace.sequence_offsets[at];
        SourceLoss& loss = observed.losses[static_cast<std::size_t>(trace.sequence_sources[at])];
        BlockRecord::take(gathered[b - first], rows * T, (row - blocks[b]) * T, count, trace,
                          loss.loss);
        loss.tokens += count;
      }
  }
  for (SourceLoss& loss : observed.losses)
    loss.loss /= std::max(1.0, static_cast<double>(loss.tokens));
  return observed;
}

}  // namespace openmoe
