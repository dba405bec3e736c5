#include "data/record_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/byte_source.h"
#include "data/hash.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kReadBytes = 1 << 20;

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

constexpr const char* kJsonLinesEndings[] = {".jsonl",   ".json",      ".jsonl.gz",
                                             ".json.gz", ".jsonl.zst", ".json.zst"};

bool is_json_lines(const std::string& name) {
  return std::any_of(std::begin(kJsonLinesEndings), std::end(kJsonLinesEndings),
                     [&](const char* end) { return ends_with(name, end); });
}

std::string stem_of(const fs::path& path) {
  std::string name =
      path.filename().empty() ? path.parent_path().filename().string() : path.filename().string();
  for (const char* end : {".gz", ".zst", ".jsonl", ".json", ".txt"})
    if (ends_with(name, end) && name.size() > std::strlen(end))
      name.resize(name.size() - std::strlen(end));
  return name;
}

class JsonLinesReader : public RecordReader {
 public:
  JsonLinesReader(const std::string& path, std::int64_t max_bytes)
      : path_(path), max_bytes_(static_cast<std::size_t>(max_bytes)), source_(open_bytes(path)) {}

  bool next(RawRecord& record) override {
    record.bytes.clear();
    record.file = path_;
    record.offset = offset_;
    record.is_text = false;
    record.problem.clear();
    std::size_t length = 0;  // of the line; more than record.bytes holds when the line is too long
    bool any = false;
    for (;;) {
      if (begin_ == end_ && !fill()) break;
      any = true;
      const char* start = buffer_.data() + begin_;
      const void* newline = std::memchr(start, '\n', end_ - begin_);
      const std::size_t part =
          newline == nullptr ? end_ - begin_
                             : static_cast<std::size_t>(static_cast<const char*>(newline) - start);
      if (length + part <= max_bytes_) record.bytes.append(start, part);
      length += part;
      begin_ += part;
      if (newline != nullptr) {
        ++begin_;
        ++offset_;
        break;
      }
    }
    offset_ += static_cast<std::int64_t>(length);
    if (!any) return false;
    record.line = ++line_;
    if (length > max_bytes_) {
      record.bytes.clear();
      record.problem = concat("the line has ", length, " bytes, more than the limit of ",
                              max_bytes_, "; --max-record-mb raises it");
    }
    if (!record.bytes.empty() && record.bytes.back() == '\r') record.bytes.pop_back();
    return true;
  }

  std::int64_t bytes_read() const override { return source_->stored_bytes_read(); }

 private:
  bool fill() {
    buffer_.resize(kReadBytes);
    begin_ = 0;
    end_ = source_->read(buffer_.data(), buffer_.size());
    return end_ > 0;
  }

  std::string path_;
  std::size_t max_bytes_;
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::int64_t line_ = 0;
  std::int64_t offset_ = 0;
};

std::vector<std::string> text_files(const std::string& path) {
  if (!fs::is_directory(path)) return {path};
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

std::string read_text_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file && fs::file_size(path) > 0) throw UserError(concat(path, ": cannot be read"));
  return bytes.str();
}

class TextFolderReader : public RecordReader {
 public:
  TextFolderReader(const std::string& path, std::int64_t max_bytes)
      : files_(text_files(path)), max_bytes_(max_bytes) {}

  bool next(RawRecord& record) override {
    if (index_ == files_.size()) return false;
    record.file = files_[index_++];
    record.line = 1;
    record.offset = 0;
    record.is_text = true;
    record.problem.clear();
    const auto size = static_cast<std::int64_t>(fs::file_size(record.file));
    bytes_read_ += size;
    record.bytes.clear();
    if (size > max_bytes_)
      record.problem = concat("the file has ", size, " bytes, more than the limit of ", max_bytes_,
                              "; --max-record-mb raises it");
    else
      record.bytes = read_text_file(record.file);
    return true;
  }

  std::int64_t bytes_read() const override { return bytes_read_; }

 private:
  std::vector<std::string> files_;
  std::size_t index_ = 0;
  std::int64_t max_bytes_;
  std::int64_t bytes_read_ = 0;
};

InputInfo text_input(const std::string& path) {
  InputInfo input{path, stem_of(path), 0, true};
  for (const std::string& file : text_files(path))
    input.bytes += static_cast<std::int64_t>(fs::file_size(file));
  return input;
}

InputInfo json_input(const std::string& path) {
  return {path, stem_of(path), static_cast<std::int64_t>(fs::file_size(path)), false};
}

}  // namespace

std::vector<InputInfo> list_inputs(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) throw UserError(concat(path, ": no such input file or folder"));
  if (!fs::is_directory(status)) return {is_json_lines(path) ? json_input(path) : text_input(path)};
  std::vector<std::string> json_files;
  std::size_t others = 0;
  for (const std::string& file : text_files(path))
    is_json_lines(file) ? json_files.push_back(file) : static_cast<void>(++others);
  if (json_files.empty()) {
    if (others == 0) throw UserError(concat(path, ": the input folder holds no files"));
    return {text_input(path)};
  }
  if (others > 0)
    throw UserError(concat(path, ": the input folder mixes ", json_files.size(),
                           " JSON Lines files with ", others,
                           " others; name the files or give each kind its own folder"));
  std::vector<InputInfo> inputs;
  inputs.reserve(json_files.size());
  for (const std::string& file : json_files) inputs.push_back(json_input(file));
  return inputs;
}

std::string sha256_input(const InputInfo& input) {
  if (!input.is_text_folder || !fs::is_directory(input.path)) return sha256_file(input.path);
  Sha256 hash;
  for (const std::string& file : text_files(input.path)) {
    const std::string text = read_text_file(file);
    hash.update(concat(fs::relative(file, input.path).string(), '\0', text.size(), '\0'));
    hash.update(text);
  }
  return hash.finish();
}

std::unique_ptr<RecordReader> open_input(const InputInfo& input, std::int64_t max_record_bytes) {
  if (input.is_text_folder) return std::make_unique<TextFolderReader>(input.path, max_record_bytes);
  return std::make_unique<JsonLinesReader>(input.path, max_record_bytes);
}

}  // namespace openmoe
