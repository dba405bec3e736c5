// The body of a completions request, as OpenAI's API words it, answered by a DecodeModel. No
// network here: see serve.cpp.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/decode_model.h"

namespace openmoe {

// Keys taken: prompt (text, ids, or lists of either), max_tokens, temperature, top_p, top_k,
// repetition_penalty, seed, stop, stop_token_ids (lists of ids), logprobs, echo, n (1 only),
// stream, and model and user, which change nothing. Throws UserError on others and on wrong values.
// With `on_text`, the text of the only prompt as it comes.
nlohmann::ordered_json complete(const nlohmann::json& body, DecodeModel& model,
                                const std::function<void(const std::string&)>& on_text = {});

// One object of the same form with a piece of text, for streams.
nlohmann::ordered_json completion_piece(const std::string& text, const std::string& model);

}  // namespace openmoe
