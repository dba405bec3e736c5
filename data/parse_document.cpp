// From one record to a document: JSON and UTF-8.
#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "data/record_reader.h"

namespace openmoe {
namespace {

using Json = nlohmann::json;

// Takes what it needs from the parser's events; no tree is built. Depth 1 is inside the outermost
// object.
class DocumentEvents : public nlohmann::json_sax<Json> {
 public:
  DocumentEvents(const std::string& text_field, Document& document)
      : text_field_(text_field), document_(document) {}

  std::string finish() {
    if (!is_object_) return "the record is not a JSON object";
    if (!wrong_type_.empty()) return concat("the field \"", wrong_type_, "\" is not a string");
    if (!text_field_.empty() && !found_text_)
      return concat("the record has no field \"", text_field_, "\"");
    if (found_text_) return "";
    if (found_content_) {
      document_.text = std::move(content_);
      return "";
    }
    if (found_conversation_) {
      document_.text = std::move(conversation_);
      return "";
    }
    return R"(the record has none of the fields "text", "content", "conversation"; )"
           "prepare --text-field takes another";
  }
  std::size_t error_position() const { return error_position_; }
  const std::string& error_text() const { return error_text_; }

  bool null() override { return scalar(); }
  bool boolean(bool) override { return scalar(); }
  bool number_integer(number_integer_t) override { return scalar(); }
  bool number_unsigned(number_unsigned_t) override { return scalar(); }
  bool number_float(number_float_t, const string_t&) override { return scalar(); }
  bool binary(binary_t&) override { return scalar(); }
  bool string(string_t& value) override {
    if (depth_ == 1) {
      if (is_text_key()) {
        document_.text = std::move(value);
        found_text_ = true;
      } else if (text_field_.empty() && key_ == "content") {
        content_ = std::move(value);
        found_content_ = true;
      } else if (key_ == "lang") {
        document_.tag = std::move(value);
      }
    } else if (depth_ == 2 && key_ == "meta") {
      if (inner_key_ == "language" || inner_key_ == "redpajama_set_name" || inner_key_ == "task")
        document_.tag = std::move(value);
    } else if (depth_ == 3 && key_ == "conversation" && inner_key_ == "content") {
      if (!conversation_.empty()) conversation_ += "\n\n";
      conversation_ += value;
    }
    return true;
  }
  bool start_object(std::size_t) override {
    if (depth_ == 0) is_object_ = true;
    if (depth_ == 1) scalar();
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ == 1) {
      scalar();
      if (text_field_.empty() && key_ == "conversation") found_conversation_ = true;
    }
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    (depth_ == 1 ? key_ : inner_key_) = std::move(name);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const Json::exception& error) override {
    error_position_ = position;
    error_text_ = error.what();
    return false;
  }

 private:
  bool is_text_key() const { return key_ == (text_field_.empty() ? "text" : text_field_); }
  // Any value but a string where the text should be.
  bool scalar() {
    if (depth_ == 1 && (is_text_key() || (text_field_.empty() && key_ == "content")))
      wrong_type_ = key_;
    return true;
  }

  const std::string& text_field_;
  Document& document_;
  int depth_ = 0;
  bool is_object_ = false;
  bool found_text_ = false;
  bool found_content_ = false;
  bool found_conversation_ = false;
  std::string content_;
  std::string conversation_;
  std::string key_;
  std::string inner_key_;
  std::string wrong_type_;
  std::size_t error_position_ = 0;
  std::string error_text_;
};

// The parser's sentence without its own prefix "[json.exception...] parse error at line 1, column
// 5: ".
std::string plain_reason(const std::string& text) {
  const std::size_t at = text.find(": ");
  return "malformed JSON: " + (at == std::string::npos ? text : text.substr(at + 2));
}

}  // namespace

std::string parse_document(const RawRecord& record, const std::string& text_field,
                           Document& document, std::int64_t& bad_offset) {
  document.text.clear();
  document.tag.clear();
  bad_offset = 0;
  if (!record.problem.empty()) return record.problem;
  if (record.is_text) {
    const std::size_t at = find_invalid_utf8(record.bytes);
    if (at != std::string::npos) {
      bad_offset = static_cast<std::int64_t>(at);
      return "the text is not valid UTF-8";
    }
    document.text = record.bytes;
  } else {
    DocumentEvents events(text_field, document);
    if (!Json::sax_parse(record.bytes.begin(), record.bytes.end(), &events)) {
      const std::size_t position = events.error_position();
      bad_offset = static_cast<std::int64_t>(position == 0 ? 0 : position - 1);
      return plain_reason(events.error_text());
    }
    std::string reason = events.finish();
    if (!reason.empty()) return reason;
  }
  const std::size_t nul = document.text.find('\0');
  if (nul != std::string::npos) {
    bad_offset = record.is_text ? static_cast<std::int64_t>(nul) : 0;
    return concat("the text holds a NUL character (character byte ", nul, " of the document)");
  }
  return "";
}

std::size_t find_invalid_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || i + length > text.size()) return i;
    for (std::size_t k = 1; k < length; ++k)
      if ((byte(i + k) & 0xc0) != 0x80) return i;
    // Overlong forms, surrogates, and code points beyond U+10FFFF differ in the second byte.
    const unsigned char second = byte(i + 1);
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
        (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f))
      return i;
    i += length;
  }
  return std::string_view::npos;
}

}  // namespace openmoe
