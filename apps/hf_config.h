// config.json of the Hugging Face port of OpenMoE, and our recipe: each from the other.
#pragma once

#include <string>

#include "core/config/recipe.h"

namespace openmoe {

// Recipe text (JSON, only the keys that config.json decides, and a causal_lm phase to go on with)
// from the text of a config.json. Throws one UserError that lists every key that is missing, of the
// wrong type, or says what this architecture is not.
std::string recipe_text_from_hf_config(const std::string& config_json, const std::string& origin);

// What the port cannot say of a model, as one phrase for the user; "" when it can say all.
// attention_scale rsqrt is no obstacle: the factor is folded into the query weights.
std::string not_in_hf_config(const Recipe& recipe);

// config.json of a model. `base_json`: a config.json whose other keys are kept, or "" for those of
// the released models. `torch_dtype`: "float32", "float16" or "bfloat16".
std::string hf_config_from_recipe(const Recipe& recipe, const std::string& base_json,
                                  const std::string& torch_dtype);

}  // namespace openmoe
