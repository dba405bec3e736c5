#include "data/chat.h"

#include <nlohmann/json.hpp>

#include "core/base/check.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string read_turns(const Json& record, std::vector<ChatTurn>& turns) {
  for (const char* key : {"conversation", "messages"}) {
    if (!record.contains(key)) continue;
    if (!record[key].is_array()) return concat("the field \"", key, "\" is not a list");
    for (const Json& turn : record[key]) {
      if (!turn.is_object() || text_of(turn, "role").empty() || !turn.contains("content") ||
          !turn["content"].is_string())
        return concat("the field \"", key, "\" holds a turn without \"role\" and \"content\"");
      turns.push_back({text_of(turn, "role"), text_of(turn, "content")});
    }
    return "";
  }
  for (const auto& [prompt, reply] :
       {std::pair{"input", "output"}, std::pair{"prompt", "completion"}}) {
    if (text_of(record, prompt).empty() || text_of(record, reply).empty()) continue;
    turns = {{"user", text_of(record, prompt)}, {"assistant", text_of(record, reply)}};
    return "";
  }
  return R"(the record has none of "conversation", "messages", "input" with "output", "prompt" with "completion")";
}

}  // namespace

std::vector<std::string> chat_parts(const std::vector<ChatTurn>& turns) {
  std::vector<std::string> parts;
  std::string prompt;
  std::size_t first = 0;
  if (!turns.empty() && turns[0].role == "system") {
    prompt = "<<SYS>>\n" + turns[0].content + "\n<</SYS>>\n\n";
    first = 1;
  }
  for (std::size_t i = first; i < turns.size(); ++i) {
    const bool is_reply = (i - first) % 2 == 1;
    if (turns[i].role != (is_reply ? "assistant" : "user")) return {};
    if (!is_reply) {
      prompt += "<s>[INST] " + turns[i].content + " [/INST]";
      continue;
    }
    parts.push_back(std::move(prompt));
    parts.push_back(turns[i].content + " </s>");
    prompt.clear();
  }
  return parts;
}

std::string parse_chat(const RawRecord& record, Document& document, std::vector<std::string>& parts,
                       std::int64_t& bad_offset) {
  document = {};
  parts.clear();
  bad_offset = 0;
  if (!record.problem.empty()) return record.problem;
  if (record.is_text) return "plain text holds no conversation; --chat needs JSON Lines";
  Json json;
  try {
    json = Json::parse(record.bytes);
  } catch (const Json::parse_error& error) {
    bad_offset = static_cast<std::int64_t>(error.byte == 0 ? 0 : error.byte - 1);
    return concat("malformed JSON: ", error.what());
  }
  if (!json.is_object()) return "the record is not a JSON object";
  std::vector<ChatTurn> turns;
  std::string reason = read_turns(json, turns);
  if (!reason.empty()) return reason;
  parts = chat_parts(turns);
  if (parts.empty())
    return "the turns are not user, assistant, user, ... after an optional system turn";
  for (const std::string& part : parts) document.text += (document.text.empty() ? "" : " ") + part;
  if (document.text.find('\0') != std::string::npos) return "the text holds a NUL character";
  document.tag = text_of(json, "language");
  return "";
}

}  // namespace openmoe
