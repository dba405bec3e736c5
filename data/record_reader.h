// Reading documents: JSON Lines (plain, .gz, .zst) and folders of plain text, record by record,
// each with its place in the input so that a fault can be named. Splitting into records is separate
// from parsing them, which worker threads do.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace openmoe {

// One record as it stands in the input.
struct RawRecord {
  std::string
      bytes;  // the line without its newline, or the whole text file; empty when `problem` is set
  std::string file;         // where it stands
  std::int64_t line = 0;    // from 1; text files: 1
  std::int64_t offset = 0;  // of its first byte in the (decompressed) file
  bool is_text = false;     // bytes are the document itself, not JSON
  std::string problem;      // the splitter's own finding (a line too long), or empty
};

// One input: a JSON Lines file or a folder of text files. Records come in a fixed order.
class RecordReader {
 public:
  virtual ~RecordReader() = default;
  virtual bool next(
      RawRecord& record) = 0;  // false at the end. Throws UserError when the file is broken.
  virtual std::int64_t bytes_read() const = 0;  // of the files as stored, for progress
};

// What an input is and how to identify it.
struct InputInfo {
  std::string path;
  std::string stem;        // file name without .jsonl, .gz, ...: default name of the source
  std::int64_t bytes = 0;  // as stored
  bool is_text_folder = false;
};

// Files behind one --input argument: a .jsonl file, a folder that holds some (each becomes an
// input, sorted), a folder of plain text (one input, each file one document), or one text file.
// Throws UserError.
std::vector<InputInfo> list_inputs(const std::string& path);
// SHA-256 of the file; of a text folder: of all relative names and contents in order.
std::string sha256_input(const InputInfo& input);
std::unique_ptr<RecordReader> open_input(const InputInfo& input, std::int64_t max_record_bytes);

// A document taken from a record.
struct Document {
  std::string text;
  // Finer origin within the source: "lang" or in "meta" "language" (programming or natural),
  // "redpajama_set_name" or "task"; may be empty.
  std::string tag;
};

// Fills `document` from a record. Returns an empty string, or the reason why the record is
// unusable; `bad_offset` is then the byte within the record. `text_field`: key of the text; empty:
// the first of "text" (RedPajama), "content" (The Stack), "conversation" (WildChat: the turns'
// contents, one after the other, separated by an empty line).
std::string parse_document(const RawRecord& record, const std::string& text_field,
                           Document& document, std::int64_t& bad_offset);

// Index of the first byte that is not part of valid UTF-8 (RFC 3629), or npos.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace openmoe
