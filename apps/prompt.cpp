#include "apps/prompt.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/record_reader.h"

namespace openmoe {
namespace {

constexpr std::string_view kSentinelBegin = "<extra_id_";
// What SentencePiece writes for bytes that are no whole character.
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

void check_text(const std::string& text) {
  const std::size_t bad = find_invalid_utf8(text);
  if (bad != std::string::npos)
    throw UserError(concat("prompt: byte ", bad, " is not valid UTF-8"));
}

// The number of the sentinel that begins at `at`, and its end; -1 when none does.
std::int64_t sentinel_at(const std::string& text, std::size_t at, std::size_t& end) {
  std::size_t digit = at + kSentinelBegin.size();
  std::int64_t number = 0;
  const std::size_t first = digit;
  for (; digit < text.size() && text[digit] >= '0' && text[digit] <= '9' && digit < first + 6;
       ++digit)
    number = 10 * number + (text[digit] - '0');
  if (digit == first || digit >= text.size() || text[digit] != '>') return -1;
  end = digit + 1;
  return number;
}

}  // namespace

std::vector<std::int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text) {
  check_text(text);
  std::vector<std::int32_t> ids;
  std::size_t begin = 0;  // of text that is not encoded yet
  for (std::size_t at = text.find(kSentinelBegin); at != std::string::npos;
       at = text.find(kSentinelBegin, at + 1)) {
    std::size_t end = 0;
    const std::int64_t number = sentinel_at(text, at, end);
    if (number < 0) continue;
    if (number >= tokenizer.num_sentinels())
      throw UserError(concat("prompt: found <extra_id_", number,
                             ">, allowed: <extra_id_0> to <extra_id_",
                             tokenizer.num_sentinels() - 1, ">, the tokenizer's sentinels"));
    std::size_t last = at;
    if (last > begin && text[last - 1] == ' ') --last;
    if (last > begin) tokenizer.encode(std::string_view(text).substr(begin, last - begin), ids);
    ids.push_back(tokenizer.sentinel(number));
    begin = end;
    if (begin < text.size() && text[begin] == ' ') ++begin;
  }
  if (begin < text.size()) tokenizer.encode(std::string_view(text).substr(begin), ids);
  return ids;
}

std::vector<std::int32_t> encode_ul2_prompt(const Tokenizer& tokenizer, const std::string& mode,
                                            const std::string& text) {
  const std::string tag = mode == "nlu" ? "[NLU] " : mode == "nlg" ? "[NLG] " : "[S2S] ";
  std::vector<std::int32_t> ids = tokenizer.encode(tag);
  const std::vector<std::int32_t> body = encode_prompt(tokenizer, text);
  ids.insert(ids.end(), body.begin(), body.end());
  ids.push_back(Tokenizer::kEos);
  return ids;
}

std::vector<std::int32_t> encode_chat(const Tokenizer& tokenizer,
                                      const std::vector<ChatTurn>& turns) {
  for (const ChatTurn& turn : turns) check_text(turn.content);
  std::vector<ChatTurn> with_reply = turns;
  with_reply.push_back({"assistant", ""});
  std::vector<std::string> parts = chat_parts(with_reply);
  if (parts.empty())
    throw UserError(
        "conversation: its turns must be user, assistant, ..., user, after an optional system "
        "turn");
  parts.pop_back();  // the empty reply
  std::vector<std::int32_t> ids;
  for (const std::string& part : parts) tokenizer.encode(part, ids);
  return ids;
}

std::vector<std::int32_t> chat_stop(const Tokenizer& tokenizer) {
  return tokenizer.encode("</s>");
}

TextOfTokens::TextOfTokens(const Tokenizer& tokenizer, const std::vector<std::int32_t>& prompt,
                           const std::vector<std::string>& stop_strings)
    : tokenizer_(tokenizer),
      prompt_(prompt),
      prompt_text_(tokenizer.decode(prompt)),
      stop_strings_(stop_strings) {}

// The first token of a reply may begin with a blank, which decoding it alone would lose.
std::string TextOfTokens::whole(const std::vector<std::int32_t>& tokens) const {
  std::vector<std::int32_t> all = prompt_;
  all.insert(all.end(), tokens.begin(), tokens.end());
  const std::string text = tokenizer_.decode(all);
  return text.starts_with(prompt_text_) ? text.substr(prompt_text_.size())
                                        : tokenizer_.decode(tokens);
}

std::string TextOfTokens::text(const std::vector<std::int32_t>& tokens) const {
  std::string text = whole(tokens);
  std::size_t end = std::string::npos;
  for (const std::string& stop : stop_strings_) end = std::min(end, text.find(stop));
  return text.substr(0, end);
}

bool TextOfTokens::is_stopped(const std::vector<std::int32_t>& tokens) const {
  if (stop_strings_.empty()) return false;
  const std::string text = whole(tokens);
  return std::any_of(stop_strings_.begin(), stop_strings_.end(),
                     [&](const std::string& stop) { return text.find(stop) != std::string::npos; });
}

std::string TextOfTokens::settled(const std::string& text) const {
  std::string kept = text;
  while (kept.ends_with(kReplacement)) kept.resize(kept.size() - kReplacement.size());
  std::size_t held = 0;  // bytes at the end that begin a stop string
  for (const std::string& stop : stop_strings_)
    for (std::size_t n = std::min(stop.size(), kept.size()); n > held; --n)
      if (kept.ends_with(stop.substr(0, n))) held = n;
  return kept.substr(0, kept.size() - held);
}

}  // namespace openmoe
