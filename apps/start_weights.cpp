#include "apps/start_weights.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "apps/agree.h"
#include "apps/checkpoint_reader.h"
#include "apps/hf_layout.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/config/recipe_io.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

// Keys of "model" that say what is computed: without those of initial values, and without those of
// experts when a dense model is to become one with experts.
nlohmann::json comparable_model(const Recipe& recipe, bool upcycle) {
  auto model = nlohmann::json::parse(to_json(recipe)).at("model");
  for (const char* key : {"init_scale", "embedding_init_std", "router_init_std"}) model.erase(key);
  if (upcycle)
    for (const char* key : {"num_experts", "moe_interval", "residual_ffn"}) model.erase(key);
  return model;
}

void check_fits(const CheckpointManifest& manifest, const std::string& checkpoint,
                const Recipe& recipe) {
  const bool upcycle = recipe.start.upcycle;
  const auto theirs = comparable_model(
      parse_recipe(manifest.meta.recipe_json, checkpoint + ": its recipe"), upcycle);
  const auto ours = comparable_model(recipe, upcycle);
  if (theirs != ours)
    throw UserError("--from " + checkpoint + ": its model differs from the recipe's: " +
                    nlohmann::json::diff(theirs, ours).dump());
  if (upcycle && recipe.model.num_moe_layers() == 0)
    throw UserError(
        "start.upcycle: found true, but the recipe's model has no MoE layer (model.moe_interval)");
  if (recipe.start.optimizer == OptimizerStart::fresh) return;
  if (upcycle)
    throw UserError(
        "start.optimizer: found continued, allowed with start.upcycle: fresh, since the experts "
        "are new");
  if (manifest.find("stat_row/" + std::string("model.norm.weight")) == nullptr)
    throw UserError(
        "start.optimizer: found continued, but " + checkpoint +
        " holds no optimizer state (imported weights have none); allowed: fresh, as --set "
        "start.optimizer=fresh");
}

// Name of the source's tensor that a parameter of an upcycled layer is made from; "" when it is
// none.
std::string dense_origin(const std::string& name) {
  const std::pair<const char*, const char*> pairs[] = {
      {"mlp.experts.wi_gate", "mlp.gate_proj.weight"},
      {"mlp.experts.wi_up", "mlp.up_proj.weight"},
      {"mlp.experts.wo", "mlp.down_proj.weight"},
      {"extra_mlp.gate_proj.weight", "mlp.gate_proj.weight"},
      {"extra_mlp.up_proj.weight", "mlp.up_proj.weight"},
      {"extra_mlp.down_proj.weight", "mlp.down_proj.weight"},
      {"pre_extra_mlp_layernorm.weight", "post_attention_layernorm.weight"}};
  for (const auto& [ours, theirs] : pairs)
    if (name.ends_with(ours))
      return name.substr(0, name.size() - std::string(ours).size()) + theirs;
  return "";
}

// One after the other, so that a model never stands in memory twice.
class Upcycler {
 public:
  Upcycler(const std::string& checkpoint, const CheckpointManifest& manifest, const Recipe& recipe)
      : checkpoint_(checkpoint),
        manifest_(manifest),
        recipe_(recipe),
        reader_(checkpoint, manifest) {}

  void fill(Param& param) {
    const CheckpointTensor* source = manifest_.find("value/" + param.name);
    if (source != nullptr && source->shape == param.global_shape) {
      for (const Piece& piece : param.placement(&Param::value).pieces)
        reader_.read(*source, piece, param.value);
      return;
    }
    if (source == nullptr && param.name.ends_with("mlp.gate_weight")) return;  // the new router
    const std::string origin = dense_origin(param.name);
    source = origin.empty() ? nullptr : manifest_.find("value/" + origin);
    if (source == nullptr)
      throw UserError("--from " + checkpoint_ + ": holds nothing to make " + param.name +
                      " of; its MoE layers "
                      "must be MoE layers of the recipe too, with as many experts");
    if (param.sharding == Sharding::expert)
      fill_experts(param, *source);
    else
      for (const Piece& piece : param.placement(&Param::value).pieces)
        reader_.read(*source, piece, param.value);
  }

 private:
  // (El, in, out) or a slice of it, from (out, in)
  void fill_experts(Param& param, const CheckpointTensor& source) {
    const std::int64_t out = source.shape[0], in = source.shape[1], size = out * in;
    std::vector<float> dense(static_cast<std::size_t>(size));
    reader_.read(source, 0, host_view(dense.data(), source.shape));
    double square = 0.0;
    for (const float value : dense)
      square += static_cast<double>(value) * static_cast<double>(value);
    const double noise = recipe_.start.expert_noise * std::sqrt(square / static_cast<double>(size));
    const Rng rng(static_cast<std::uint64_t>(recipe_.run.seed),
                  stream_id("upcycle", stream_id(param.name)));
    std::vector<float> expert(static_cast<std::size_t>(size));  // (in, out), whole
    transpose(expert.data(), dense.data(), out, in);
    const Placement placement = param.placement(&Param::value);
    float* const values = param.value.as<float>();
    for (const Piece& piece : placement.pieces) {
      const Runs runs(piece, placement.global_shape, placement.local_shape);
#pragma omp parallel for schedule(static)
      for (std::int64_t i = 0; i < runs.count(); ++i) {
        const auto [global, local] = runs.at(i);
        for (std::int64_t j = 0; j < runs.length(); ++j) {
          values[local + j] = expert[static_cast<std::size_t>((global + j) % size)];
          if (noise != 0.0)
            values[local + j] +=
                static_cast<float>(noise * rng.normal_at(static_cast<std::uint64_t>(global + j)));
        }
      }
    }
  }

  const std::string& checkpoint_;
  const CheckpointManifest& manifest_;
  const Recipe& recipe_;
  CheckpointReader reader_;
};

}  // namespace

CheckpointMeta start_from(const std::string& folder, ParamTable& table, const Recipe& recipe,
                          ProcessGrid& grid) {
  std::string checkpoint;
  CheckpointManifest manifest;
  on_every_rank(grid.world(), [&] {
    checkpoint = require_checkpoint(folder);
    manifest = read_manifest(checkpoint);
    check_fits(manifest, checkpoint, recipe);
  });
  if (!recipe.start.upcycle)
    return load_checkpoint(checkpoint, table, grid,
                           recipe.start.optimizer == OptimizerStart::continued);
  on_every_rank(grid.world(), [&] {
    Upcycler upcycler(checkpoint, manifest, recipe);
    for (Param& param : table.params()) upcycler.fill(param);
  });
  return manifest.meta;
}

}  // namespace openmoe
