// Prompts as tokens: plain text with sentinels, UL2's modes, conversations; and generated tokens as
// text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/chat.h"
#include "data/tokenizer.h"

namespace openmoe {

// The ids of `text`. <extra_id_0>, <extra_id_1>, ... become sentinels, each with the blank before
// and after it, as the original's tokenizer takes them. Throws UserError on invalid UTF-8 and on a
// sentinel that the tokenizer does not have.
std::vector<std::int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text);

// `mode` is nlu, nlg or s2s: the mode's tag, the text, and eos, as UL2 rows were trained; the
// answer then comes as targets did (after nlu and nlg: <extra_id_0> and what belongs there, ...;
// after s2s: the continuation).
std::vector<std::int32_t> encode_ul2_prompt(const Tokenizer& tokenizer, const std::string& mode,
                                            const std::string& text);

// A conversation up to the reply that is wanted, in the template of training (data/chat.h). Throws
// UserError when the turns are not user, assistant, ..., user after an optional system turn.
std::vector<std::int32_t> encode_chat(const Tokenizer& tokenizer,
                                      const std::vector<ChatTurn>& turns);

// What ends a reply: the pieces of "</s>", which the chat template writes as text.
std::vector<std::int32_t> chat_stop(const Tokenizer& tokenizer);

// Turns a growing list of tokens into text.
class TextOfTokens {
 public:
  TextOfTokens(const Tokenizer& tokenizer, const std::vector<std::int32_t>& prompt,
               const std::vector<std::string>& stop_strings);

  // Text of `tokens` after the prompt, cut before the first stop string.
  std::string text(const std::vector<std::int32_t>& tokens) const;
  // True when the text holds a stop string.
  bool is_stopped(const std::vector<std::int32_t>& tokens) const;
  // The part of `text` that later tokens cannot change: without the bytes of an unfinished
  // character and without what may become a stop string.
  std::string settled(const std::string& text) const;

 private:
  std::string whole(const std::vector<std::int32_t>& tokens) const;

  const Tokenizer& tokenizer_;
  std::vector<std::int32_t> prompt_;
  std::string prompt_text_;
  std::vector<std::string> stop_strings_;
};

}  // namespace openmoe
