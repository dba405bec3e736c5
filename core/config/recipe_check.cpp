#include "core/config/recipe_check.h"

#include <algorithm>
#include <string_view>

#include "core/base/check.h"
#include "core/config/recipe_io.h"

namespace openmoe {
namespace {

using OriginOf = std::function<std::string(const std::string&)>;

struct Checker {
  const Recipe& recipe;
  ConfigErrors& errors;
  const OriginOf& origin_of;

  void fail(const std::string& path, const std::string& problem) const {
    errors.add(origin_of(path), path, problem);
  }
};

// "256 or 512": the divisors of `whole` next to `wanted`.
std::string nearest_divisors(std::int64_t whole, std::int64_t wanted) {
  constexpr std::int64_t kLongestSearch = 1 << 22;
  std::string text;
  for (std::int64_t d = std::min(wanted, whole); d >= 1 && wanted - d < kLongestSearch; --d) {
    if (whole % d != 0) continue;
    text = std::to_string(d);
    break;
  }
  for (std::int64_t d = wanted + 1; d <= whole && d - wanted < kLongestSearch; ++d) {
    if (whole % d != 0) continue;
    text += (text.empty() ? "" : " or ") + std::to_string(d);
    break;
  }
  return text;
}

void check_model(const Checker& check) {
  const ModelConfig& model = check.recipe.model;
  if (check.errors.clean({"model.head_dim"}) && model.head_dim % 2 != 0)
    check.fail("model.head_dim",
               concat("found ", model.head_dim,
                      ", allowed: an even number, since rotary position encoding turns "
                      "pairs of values; nearest: ",
                      model.head_dim - 1, " or ", model.head_dim + 1));
  if (check.errors.clean({"model.moe_interval", "model.num_layers"}) &&
      model.moe_interval > model.num_layers)
    check.fail(
        "model.moe_interval",
        concat("found ", model.moe_interval, ", allowed: 0 (dense model) to model.num_layers (",
               model.num_layers, "); a larger one would leave no MoE layer"));
  if (check.errors.clean({"model.parallel_block", "model.residual_ffn", "model.moe_interval"}) &&
      model.parallel_block && model.moe_interval > 0 &&
      model.residual_ffn == ResidualFfn::sequential)
    check.fail("model.residual_ffn",
               "found sequential, allowed with model.parallel_block: parallel, since all "
               "sublayers then read the same input; set model.residual_ffn to parallel, or "
               "model.parallel_block to false");
  if (check.errors.clean({"model.num_experts", "parallel.ep", "model.moe_interval"}) &&
      model.moe_interval > 0 && model.num_experts % check.recipe.parallel.ep != 0)
    check.fail(
        "parallel.ep",
        concat("found ", check.recipe.parallel.ep, ", allowed: a divisor of model.num_experts (",
               model.num_experts,
               "); nearest: ", nearest_divisors(model.num_experts, check.recipe.parallel.ep)));
}

// `rows` rows must be whole routing groups.
void check_whole_groups(const Checker& check, const std::string& path, std::int64_t rows) {
  const std::int64_t positions = rows * check.recipe.data.sequence_length;
  const std::int64_t group = check.recipe.routing.group_tokens;
  if (positions % group == 0) return;
  check.fail(path, concat("found ", rows, " rows = ", positions,
                          " positions (data.sequence_length is ", check.recipe.data.sequence_length,
                          "), allowed: a multiple of routing.group_tokens (", group,
                          "); with these rows routing.group_tokens could be ",
                          nearest_divisors(positions, group)));
}

void check_groups(const Checker& check) {
  const Recipe& recipe = check.recipe;
  if (recipe.model.moe_interval == 0) return;
  if (!check.errors.clean({"data.sequence_length", "routing.group_tokens", "model.moe_interval"}))
    return;
  if (check.errors.clean({"data.batch_rows"}))
    check_whole_groups(check, "data.batch_rows", recipe.data.batch_rows);
  if (check.errors.clean({"parallel.micro_batch_rows"}) && recipe.parallel.micro_batch_rows > 0)
    check_whole_groups(check, "parallel.micro_batch_rows", recipe.parallel.micro_batch_rows);
}

std::string phase_path(std::size_t index) {
  return "data.phases[" + std::to_string(index) + "]";
}

bool is_file_name(const std::string& name) {
  constexpr std::string_view kOther = "-_.";
  return !name.empty() && name.front() != '.' && std::all_of(name.begin(), name.end(), [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           kOther.find(c) != std::string_view::npos;
  });
}

void check_phase(const Checker& check, std::size_t index) {
  const auto& phases = check.recipe.data.phases;
  const PhaseConfig& phase = phases[index];
  const std::string path = phase_path(index);
  if (check.errors.clean({path + ".mixture"}) &&
      (!is_file_name(phase.mixture) || phase.mixture.ends_with(".json")))
    check.fail(path + ".mixture",
               "found \"" + phase.mixture +
                   "\", allowed: the name of a mixture file without folder and .json, "
                   "such as openmoe-v1");
  const std::pair<const char*, std::int64_t> ends[] = {
      {"until_step", phase.until_step},
      {"until_positions", phase.until_positions},
      {"until_real_tokens", phase.until_real_tokens},
      {"until_loss_tokens", phase.until_loss_tokens}};
  std::string stated;
  int num_stated = 0;
  for (const auto& [key, value] : ends)
    if (value > 0)
      stated += concat(num_stated++ == 0 ? ""
                       : num_stated == 2 ? " and "
                                         : ", ",
                       key, " (", value, ")");
  if (num_stated > 1)
    check.fail(path, concat("has both ", stated, "; state one, and 0 for the others"));
  if (index + 1 < phases.size() && num_stated == 0)
    check.fail(path,
               "has neither until_step nor until_positions, and no end in tokens; only the last "
               "phase may be open");
  if (index == 0 && phase.blend_steps > 0)
    check.fail(path + ".blend_steps", concat("found ", phase.blend_steps,
                                             ", allowed: 0, since no phase comes before this one"));
  const bool has_extra = !phase.extra_source.empty();
  if (has_extra != (phase.extra_share > 0.0) || has_extra != (phase.extra_steps > 0))
    check.fail(path,
               "extra_source, extra_share and extra_steps go together: state all three or none");
  if (has_extra && phase.blend_steps > 0)
    check.fail(path, "has both blend_steps and extra_source; put them into two phases");
}

bool ends_in_tokens(const PhaseConfig& phase) {
  return phase.until_real_tokens > 0 || phase.until_loss_tokens > 0;
}

void check_phases(const Checker& check) {
  const Recipe& recipe = check.recipe;
  const auto& phases = recipe.data.phases;
  if (!check.errors.clean({"data.phases"})) return;
  if (phases.empty()) {
    check.fail("data.phases",
               "found no phase, allowed: at least one, such as "
               "{\"objective\": \"causal_lm\", \"mixture\": \"openmoe-v1\"}");
    return;
  }
  for (std::size_t i = 0; i < phases.size(); ++i) check_phase(check, i);
  if (!check.errors.empty()) return;  // the ends below need every phase to be sound
  // Ends stated in tokens become steps when the data is opened; they are checked there.
  if (std::any_of(phases.begin(), phases.end(), ends_in_tokens)) return;
  for (std::size_t i = 1; i < phases.size(); ++i) {
    const auto begin = first_step_of_phase(recipe, static_cast<std::int64_t>(i) - 1);
    const auto end = first_step_of_phase(recipe, static_cast<std::int64_t>(i));
    if (end <= begin)
      check.fail(phase_path(i - 1), concat("ends at step ", end, " but starts at step ", begin,
                                           "; the ends of the phases must grow"));
  }
  const PhaseConfig& last = phases.back();
  if (last.until_step == 0 && last.until_positions == 0) return;
  const std::int64_t per_step = recipe.data.batch_rows * recipe.data.sequence_length;
  const std::int64_t end =
      last.until_step > 0 ? last.until_step : (last.until_positions + per_step - 1) / per_step;
  if (end < recipe.run.num_steps)
    check.fail(phase_path(phases.size() - 1),
               concat("ends at step ", end, " but run.num_steps is ", recipe.run.num_steps,
                      "; leave the last phase open, or add a phase"));
}

void check_objectives(const Checker& check) {
  const Recipe& recipe = check.recipe;
  const bool halves =
      std::any_of(recipe.data.phases.begin(), recipe.data.phases.end(),
                  [](const auto& phase) { return phase.objective != ObjectiveKind::causal_lm; });
  if (halves && check.errors.clean({"data.sequence_length"}) &&
      (recipe.data.sequence_length % 2 != 0 || recipe.data.sequence_length < 64))
    check.fail("data.sequence_length",
               concat("found ", recipe.data.sequence_length,
                      ", allowed: an even number of at least 64, since denoising gives half a row "
                      "to inputs and half to targets"));
}

void check_update(const Checker& check) {
  const ParallelConfig& parallel = check.recipe.parallel;
  if (!check.errors.clean(
          {"parallel.shard_update", "parallel.update_in_backward", "parallel.reduction_bucket_kb"}))
    return;
  if (parallel.update_in_backward && parallel.reduction_bucket_kb > 0)
    check.fail("parallel.reduction_bucket_kb",
               concat("found ", parallel.reduction_bucket_kb,
                      ", allowed: 0, since parallel.update_in_backward reduces every gradient on "
                      "its own; set that to false, or this to 0"));
  if (!parallel.shard_update) return;
  if (parallel.update_in_backward)
    check.fail("parallel.shard_update",
               "found true, allowed: false, since parallel.update_in_backward updates every "
               "parameter on its own; set one of the two to false");
  if (parallel.reduction_bucket_kb > 0)
    check.fail(
        "parallel.shard_update",
        "found true, allowed: false, since parallel.reduction_bucket_kb sums whole gradients "
        "on every rank; set that to 0, or this to false");
}

void check_run(const Checker& check) {
  const Recipe& recipe = check.recipe;
  if (!check.errors.clean({"run.on_nonfinite", "run.keep_every", "run.checkpoint_every"})) return;
  if (recipe.run.on_nonfinite == OnNonFinite::skip && recipe.parallel.update_in_backward)
    check.fail("run.on_nonfinite",
               "found skip, allowed: stop, since parallel.update_in_backward updates parameters "
               "before the whole gradient is known; set that to false, or this to stop");
  const std::int64_t every = recipe.run.checkpoint_every;
  if (recipe.run.keep_every > 0 && (every == 0 || recipe.run.keep_every % every != 0))
    check.fail("run.keep_every",
               every == 0
                   ? concat("found ", recipe.run.keep_every,
                            ", allowed: 0, since run.checkpoint_every = 0 saves at the end only")
                   : concat("found ", recipe.run.keep_every,
                            ", allowed: a multiple of run.checkpoint_every (", every,
                            "), since only those steps are saved; nearest: ",
                            std::max(every, recipe.run.keep_every / every * every), " or ",
                            (recipe.run.keep_every / every + 1) * every));
}

}  // namespace

void check_recipe(const Recipe& recipe, ConfigErrors& errors, const OriginOf& origin_of) {
  const Checker check{recipe, errors, origin_of};
  check_model(check);
  check_groups(check);
  check_objectives(check);
  check_phases(check);
  check_update(check);
  check_run(check);
}

}  // namespace openmoe
