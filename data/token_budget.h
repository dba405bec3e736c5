// Phases that end in real or loss tokens, turned into steps.
#pragma once

#include <string>

#include "core/config/recipe.h"
#include "data/tokenizer.h"

namespace openmoe {

// Replaces until_real_tokens and until_loss_tokens by until_step: the first step at which the
// expected count from step 0 on reaches the budget. Expected: the mean over a period of the
// objective and over its random splits, which the tokenizer's mode tags enter. Throws UserError
// when phases do not end one after the other, or a phase of objective sft states such an end.
void resolve_token_budgets(Recipe& recipe, const Tokenizer& tokenizer);

// The same with the tokenizer of a data folder; nothing is read when no phase needs it.
void resolve_token_budgets(Recipe& recipe, const std::string& data_folder,
                           const std::string& any_source);

}  // namespace openmoe
