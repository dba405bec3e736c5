// Phases that end in real or loss tokens, turned into steps.
#pragma once

#include <cstddef>
#include <functional>

#include "core/config/recipe.h"
#include "data/tokenizer.h"

namespace openmoe {

// Expected positions of one row.
struct RowMeans {
  double real_tokens = 0.0;
  double loss_tokens = 0.0;
};

// Replaces until_real_tokens and until_loss_tokens by until_step: the first step at which the
// expected count from step 0 on reaches the budget. Expected: the mean over a period of the
// objective and over its random splits, which the tokenizer's mode tags enter. For phases of
// objective sft, whose rows depend on the conversations, `chat_means` gives the means; it is asked
// only when an end in tokens depends on them. Throws UserError when phases do not end one after the
// other.
void resolve_token_budgets(Recipe& recipe, const Tokenizer& tokenizer,
                           const std::function<RowMeans(std::size_t phase)>& chat_means);

}  // namespace openmoe
