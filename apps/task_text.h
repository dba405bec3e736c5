// Text of evaluation tasks: templates over an example's fields, and the metrics of generated text.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace openmoe {

// The value at a path such as "choices.text[0]" in an example. Throws UserError naming `place` and
// the keys there when it is absent.
const nlohmann::json& value_at(const nlohmann::json& example, const std::string& path,
                               const std::string& place);

// Replaces each {{path}} of `text` by the example's value as text. {{path|filter}} passes it
// through filters: trim, lower, capitalize, hellaswag (its WikiHow marks removed), before:X and
// after:X (the part on that side of the first X), last (of a list), slice:A:B (characters, bounds
// at two other paths). Throws UserError naming `place`.
std::string fill_template(const std::string& text, const nlohmann::json& example,
                          const std::string& place);

// SQuAD's normal form (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single
// blanks.
std::string normalise_answer(const std::string& text);
bool exact_match(const std::string& answer, const std::string& target);  // of normal forms
double token_f1(const std::string& answer, const std::string& target);   // of normal forms' words

// Corpus BLEU (Papineni et al. 2002) of one reference per text, as sacrebleu computes it by
// default: 13a tokens, mixed case, up to 4-grams, exponential smoothing of orders without a match.
// 0 to 100.
double corpus_bleu(const std::vector<std::string>& answers,
                   const std::vector<std::string>& targets);
std::vector<std::string> tokens_13a(const std::string& text);

}  // namespace openmoe
