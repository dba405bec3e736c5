// Chat: conversations for supervised fine-tuning, in the template of OpenMoE-8B-Chat (the
// release and FastChat's "openmoe-chat"):
//
//   <<SYS>>\n{system}\n<</SYS>>\n\n<s>[INST] {user} [/INST] {assistant} </s><s>[INST] ...
//
// <s> and </s> are ordinary text, several pieces each; no eos is appended. A conversation becomes
// parts that alternate prompt, reply, prompt, reply; each is encoded by itself (so its first piece
// carries the word-start mark, which is the blank between them) and loss falls on replies only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/record_reader.h"

namespace openmoe {

struct ChatTurn {
  std::string role;  // "system" (first only), "user", "assistant"
  std::string content;
};

// Prompt and reply texts by turns; a last prompt without a reply is dropped. Returns an empty list
// when roles do not alternate user, assistant, ... after an optional system turn, or when there is
// no reply.
std::vector<std::string> chat_parts(const std::vector<ChatTurn>& turns);

// The parts of a record: "conversation" (WildChat) or "messages" as a list of {"role", "content"},
// or "input" and "output", or "prompt" and "completion". `document.text` becomes the parts joined
// by a blank. Returns an empty string, or the reason why the record is unusable.
std::string parse_chat(const RawRecord& record, Document& document, std::vector<std::string>& parts,
                       std::int64_t& bad_offset);

}  // namespace openmoe
