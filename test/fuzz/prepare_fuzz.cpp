// libFuzzer target: byte 0 chooses how the rest, an input file, is read: bits 0 and 1 plain lines,
// gzip, Zstandard or a text file; bit 2 as conversations; bit 3 with a short limit of records; bit
// 4 the whole of `prepare`, after which the shards must hold what its report says. Built by run.sh.
// OPENMOE_FUZZ_TOKENIZER names a small model; without it bit 4 does nothing and the target is ten
// times faster.
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "data/chat.h"
#include "data/prepare.h"
#include "data/record_reader.h"
#include "data/shard.h"

namespace {

namespace fs = std::filesystem;

// Files of every kind in memory, written anew for each input.
class Folder {
 public:
  Folder() : path_("/dev/shm/openmoe-fuzz-" + std::to_string(getpid())) {
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string write(int kind, const std::uint8_t* data, std::size_t size) const {
    static constexpr const char* kNames[] = {"in.jsonl", "in.jsonl.gz", "in.json.zst", "in.txt"};
    const std::string path = path_ + "/" + kNames[kind];
    const int file = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (file < 0 || ::write(file, data, size) != static_cast<ssize_t>(size)) std::abort();
    close(file);
    return path;
  }
  std::string out() const { return path_ + "/out"; }

 private:
  std::string path_;
};

// Places are where they are said to be, and what is accepted is text without NUL.
void read_records(const std::string& path, bool chat, std::int64_t limit, const std::uint8_t* data,
                  std::size_t size, bool is_stored_plain) {
  const std::vector<openmoe::InputInfo> inputs = openmoe::list_inputs(path);
  if (inputs.size() != 1) std::abort();
  openmoe::sha256_input(inputs[0]);
  const auto reader = openmoe::open_input(inputs[0], limit);
  openmoe::RawRecord record;
  openmoe::Document document;
  std::vector<std::string> parts;
  std::int64_t line = 0;
  while (reader->next(record)) {
    if (record.line != ++line || static_cast<std::int64_t>(record.bytes.size()) > limit)
      std::abort();
    const std::string stored(reinterpret_cast<const char*>(data), size);
    if (is_stored_plain && stored.compare(static_cast<std::size_t>(record.offset),
                                          record.bytes.size(), record.bytes) != 0)
      std::abort();
    std::int64_t bad_offset = 0;
    const std::string reason = chat ? openmoe::parse_chat(record, document, parts, bad_offset)
                                    : openmoe::parse_document(record, "", document, bad_offset);
    if (bad_offset < 0 || bad_offset > static_cast<std::int64_t>(record.bytes.size())) std::abort();
    if (!reason.empty()) continue;
    if (openmoe::find_invalid_utf8(document.text) != std::string::npos) std::abort();
    if (document.text.find('\0') != std::string::npos) std::abort();
    if (chat && (parts.empty() || parts.size() % 2 != 0)) std::abort();
  }
}

void prepare_all(const Folder& folder, const std::string& path, bool chat, std::int64_t limit,
                 const char* tokenizer) {
  fs::remove_all(folder.out());
  openmoe::PrepareOptions options;
  options.tokenizer = tokenizer;
  options.inputs = {{"source", path}};
  options.out = folder.out();
  options.max_record_bytes = limit;
  options.shard_tokens = 64;
  options.validation_fraction = 0.3;
  options.chat = chat;
  options.skip_bad_records = true;
  options.remove_duplicates = true;
  options.num_threads = 1;
  const openmoe::PrepareReport report = openmoe::prepare(options, {});
  const openmoe::PrepareCounts& counts = report.sources.at(0).counts;
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  for (const std::string& shard : openmoe::list_shards(folder.out() + "/source"))
    for (const openmoe::Split split : {openmoe::Split::train, openmoe::Split::validation}) {
      openmoe::ShardReader reader(shard, split);
      if (!reader.verify().empty()) std::abort();
      documents += reader.num_documents();
      tokens += reader.num_tokens();
    }
  if (documents != counts.documents[0] + counts.documents[1]) std::abort();
  if (tokens != counts.tokens[0] + counts.tokens[1]) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  static const char* const tokenizer = std::getenv("OPENMOE_FUZZ_TOKENIZER");
  if (size == 0) return 0;
  const int kind = data[0] & 3;
  const bool chat = (data[0] & 4) != 0;
  const std::int64_t limit = (data[0] & 8) != 0 ? 64 : 1 << 20;
  const std::string path = folder.write(kind, data + 1, size - 1);
  try {
    read_records(path, chat, limit, data + 1, size - 1, kind == 0 || kind == 3);
    if ((data[0] & 16) != 0 && tokenizer != nullptr)
      prepare_all(folder, path, chat, limit, tokenizer);
  } catch (const openmoe::UserError&) {
  }
  return 0;
}
