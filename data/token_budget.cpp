#include "data/token_budget.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/recipe_io.h"
#include "data/objective.h"

namespace openmoe {
namespace {

bool ends_in_tokens(const PhaseConfig& phase) {
  return phase.until_real_tokens > 0 || phase.until_loss_tokens > 0;
}

}  // namespace

void resolve_token_budgets(Recipe& recipe, const Tokenizer& tokenizer,
                           const std::function<RowMeans(std::size_t phase)>& chat_means) {
  std::vector<PhaseConfig>& phases = recipe.data.phases;
  if (std::none_of(phases.begin(), phases.end(), ends_in_tokens)) return;
  double real = 0.0;  // expected from step 0 to the start of the phase
  double loss = 0.0;
  for (std::size_t p = 0; p < phases.size(); ++p) {
    PhaseConfig& phase = phases[p];
    const std::string path = concat("data.phases[", p, "]");
    const std::int64_t begin = first_step_of_phase(recipe, static_cast<std::int64_t>(p));
    const auto rows = static_cast<double>(recipe.data.batch_rows);
    RowMeans means;
    if (phase.objective != ObjectiveKind::sft) {
      const Objective objective(phase.objective, phase.packing, recipe.data.sequence_length,
                                tokenizer);
      means = {objective.mean_real_tokens(), objective.mean_loss_tokens()};
    } else if (std::any_of(phases.begin() + static_cast<std::ptrdiff_t>(p), phases.end(),
                           ends_in_tokens)) {
      means = chat_means(p);
    }
    const double real_per_step = rows * means.real_tokens;
    const double loss_per_step = rows * means.loss_tokens;
    if (ends_in_tokens(phase)) {
      const bool by_loss = phase.until_loss_tokens > 0;
      const std::int64_t budget = by_loss ? phase.until_loss_tokens : phase.until_real_tokens;
      const double left = static_cast<double>(budget) - (by_loss ? loss : real);
      if (left <= 0.0)
        throw UserError(concat(path, by_loss ? ".until_loss_tokens" : ".until_real_tokens",
                               ": found ", budget, ", but the phases before it already give ",
                               std::llround(by_loss ? loss : real)));
      phase.until_step = begin + static_cast<std::int64_t>(
                                     std::ceil(left / (by_loss ? loss_per_step : real_per_step)));
      phase.until_real_tokens = phase.until_loss_tokens = 0;
    }
    if (p + 1 == phases.size()) break;
    const std::int64_t end = first_step_of_phase(recipe, static_cast<std::int64_t>(p) + 1);
    if (end <= begin)
      throw UserError(concat(path, ": ends at step ", end, " but starts at step ", begin,
                             "; the ends of the phases must grow"));
    real += real_per_step * static_cast<double>(end - begin);
    loss += loss_per_step * static_cast<double>(end - begin);
  }
}

}  // namespace openmoe
