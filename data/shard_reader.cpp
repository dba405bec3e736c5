#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <list>
#include <numeric>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/h5_file.h"
#include "data/shard.h"
#include "data/shard_format.h"

namespace openmoe {
namespace {

// Decompressed blocks kept in memory; one is at most 256 kB.
constexpr std::size_t kCachedBlocks = 16;

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : id_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (id_ < 0) throw RuntimeFault(concat("open failed on ", path, ": ", std::strerror(errno)));
  }
  ~Descriptor() { ::close(id_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return id_; }

 private:
  int id_;
};

}  // namespace

std::string to_hex(std::uint64_t value) {
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[(value >> shift) & 15];
  return text;
}

std::uint64_t DocumentIndex::checksum() const {
  const auto hash = [](const auto& values) {
    return xxh3_64(values.data(), values.size() * sizeof(values[0]));
  };
  const std::uint64_t parts[] = {hash(offsets), hash(hashes),       hash(records),
                                 hash(tags),    hash(part_offsets), hash(part_ends)};
  return xxh3_64(parts, sizeof parts);
}

void write_header(H5File& file, const ShardHeader& header) {
  file.set_attribute("", "format", std::string(kShardFormat));
  file.set_attribute("", "format_version", kShardVersion);
  file.set_attribute("", "tool_version", std::string("openmoe " OPENMOE_VERSION));
  file.set_attribute("", "source", header.source);
  file.set_attribute("", "settings", header.settings);
  file.set_attribute("", "tokenizer_sha256", header.tokenizer_sha256);
  file.set_attribute("", "tokenizer_pieces", header.tokenizer_pieces);
  file.set_attribute("", "tokenizer_sentinels", header.tokenizer_sentinels);
  file.set_attribute("", "input_file", header.input_file);
  file.set_attribute("", "input_sha256", header.input_sha256);
  file.set_attribute("", "records_begin", header.records_begin);
  file.set_attribute("", "records_end", header.records_end);
  file.set_attribute("", "input_complete", std::int64_t{header.input_complete});
  file.set_attribute("", "duplicates_removed", header.duplicates_removed);
  file.set_attribute("", "empty_documents", header.empty_documents);
  file.set_attribute("", "skipped_records", header.skipped_records);
  file.set_attribute("", "text_bytes", header.text_bytes);
  file.set_attribute("", "chat", std::int64_t{header.is_chat});
}

ShardHeader read_header(const H5File& file) {
  if (!file.has_attribute("", "format") || file.string_attribute("", "format") != kShardFormat)
    throw UserError(concat(
        file.path(), ": is HDF5, but not a shard of openmoe; move it out of the data folder"));
  const std::int64_t version = file.int_attribute("", "format_version");
  if (version != kShardVersion)
    throw UserError(concat(file.path(), ": shard format version ", version,
                           ", this program reads version ", kShardVersion,
                           "; prepare the data again"));
  ShardHeader header;
  header.source = file.string_attribute("", "source");
  header.settings = file.string_attribute("", "settings");
  header.tokenizer_sha256 = file.string_attribute("", "tokenizer_sha256");
  header.tokenizer_pieces = file.int_attribute("", "tokenizer_pieces");
  header.tokenizer_sentinels = file.int_attribute("", "tokenizer_sentinels");
  header.input_file = file.string_attribute("", "input_file");
  header.input_sha256 = file.string_attribute("", "input_sha256");
  header.records_begin = file.int_attribute("", "records_begin");
  header.records_end = file.int_attribute("", "records_end");
  header.input_complete = file.int_attribute("", "input_complete") != 0;
  header.duplicates_removed = file.int_attribute("", "duplicates_removed");
  header.empty_documents = file.int_attribute("", "empty_documents");
  header.skipped_records = file.int_attribute("", "skipped_records");
  header.text_bytes = file.int_attribute("", "text_bytes");
  header.is_chat = file.int_attribute("", "chat") != 0;
  return header;
}

struct ShardReader::Impl : OpenShard {
  OpenShards* open_shards = nullptr;
  std::string path;
  Split split = Split::train;
  ShardHeader header;
  std::int64_t num_documents = 0;
  std::int64_t num_tokens = 0;
  std::int64_t id_bytes = 2;
  std::string id_type;
  std::uint64_t content_checksum = 0;
  std::vector<std::int64_t> token_addresses;  // of each block; empty when compressed
  std::int64_t offsets_address = 0;
  std::vector<std::uint64_t> block_checksums;
  std::vector<std::int64_t> part_offsets;  // chat only
  std::vector<std::int64_t> part_ends;
  std::vector<bool> verified;
  std::unique_ptr<Descriptor> descriptor;  // opened at the first read
  std::unique_ptr<H5File> file;            // compressed shards only

  struct CachedBlock {
    std::int64_t block = -1;
    std::vector<char> bytes;
  };
  std::list<CachedBlock> cache;  // compressed shards only; most recently used first
  std::vector<char> scratch;

  std::string dataset(const char* name) const { return std::string(name_of(split)) + "/" + name; }
  template <typename T>
  std::vector<T> read_all(const H5File& from, const char* name, const char* type) const;
  ~Impl() override {
    if (open_shards != nullptr) open_shards->forget(*this);
  }
  void close_file() override {
    descriptor.reset();
    file.reset();
    cache.clear();
  }
  void load();
  std::int64_t block_tokens(std::int64_t block) const {
    return std::min(kShardBlockTokens, num_tokens - block * kShardBlockTokens);
  }
  void read_bytes(std::int64_t address, std::int64_t bytes, void* dst);
  void check_block(std::int64_t block, const void* bytes);
  const std::vector<char>& decompressed(std::int64_t block);
  void read_in_block(std::int64_t block, std::int64_t begin, std::int64_t end,
                     std::vector<std::int32_t>& ids);
};

template <typename T>
std::vector<T> ShardReader::Impl::read_all(const H5File& from, const char* name,
                                           const char* type) const {
  const Shape shape = from.info(dataset(name)).shape;
  std::vector<T> values(static_cast<std::size_t>(shape.num_elements()));
  from.read_raw(dataset(name), type, 0, shape[0], values.data());
  return values;
}

// The HDF5 library detects a file that is shorter than its own records say, so a truncated shard
// fails to open.
void ShardReader::Impl::load() {
  const H5File from(path, H5File::Mode::read);
  header = read_header(from);
  const H5File::Info tokens = from.info(dataset("tokens"));
  num_tokens = tokens.shape.num_elements();
  id_type = tokens.type;
  id_bytes = id_type == "u16" ? 2 : 4;
  DocumentIndex index;
  index.offsets = read_all<std::int64_t>(from, "document_offsets", "i64");
  index.hashes = read_all<std::uint64_t>(from, "document_hashes", "u64");
  index.records = read_all<std::int64_t>(from, "document_records", "i64");
  index.tags = read_all<std::uint16_t>(from, "document_tags", "u16");
  if (header.is_chat) {
    index.part_offsets = read_all<std::int64_t>(from, "part_offsets", "i64");
    index.part_ends = read_all<std::int64_t>(from, "part_ends", "i64");
  }
  block_checksums = read_all<std::uint64_t>(from, "block_checksums", "u64");
  const std::uint64_t checksum = index.checksum();
  const std::int64_t num_blocks = (num_tokens + kShardBlockTokens - 1) / kShardBlockTokens;
  if (to_hex(checksum) != from.string_attribute(name_of(split), "index_checksum") ||
      index.offsets.empty() || index.offsets.back() != num_tokens ||
      static_cast<std::int64_t>(block_checksums.size()) != num_blocks)
    throw UserError(
        concat(path, ": the document index of /", name_of(split),
               " is damaged (checksum differs); delete the file and run prepare again"));
  num_documents = static_cast<std::int64_t>(index.offsets.size()) - 1;
  part_offsets = std::move(index.part_offsets);
  part_ends = std::move(index.part_ends);
  content_checksum = std::accumulate(
      block_checksums.begin(), block_checksums.end(), checksum,
      [](std::uint64_t sum, std::uint64_t block) { return sum * 0x9e3779b97f4a7c15ULL + block; });
  token_addresses = from.chunk_addresses(dataset("tokens"));
  offsets_address = from.chunk_addresses(dataset("document_offsets")).at(0);
  verified.assign(static_cast<std::size_t>(num_blocks), false);
}

// pread rather than a memory map: a file that shrinks or a disk that fails must become an error,
// not a signal.
void ShardReader::Impl::read_bytes(std::int64_t address, std::int64_t bytes, void* dst) {
  if (open_shards != nullptr) open_shards->use(*this);
  if (descriptor == nullptr) descriptor = std::make_unique<Descriptor>(path);
  for (std::int64_t done = 0; done < bytes;) {
    const ssize_t count = pread(descriptor->get(), static_cast<char*>(dst) + done,
                                static_cast<std::size_t>(bytes - done), address + done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0)
      throw RuntimeFault(concat("pread failed on ", path, " at byte ", address + done, ": ",
                                count == 0 ? "the file ends there; it was truncated while in use"
                                           : std::strerror(errno)));
    done += count;
  }
}

void ShardReader::Impl::check_block(std::int64_t block, const void* bytes) {
  const auto index = static_cast<std::size_t>(block);
  if (xxh3_64(bytes, static_cast<std::size_t>(block_tokens(block) * id_bytes)) !=
      block_checksums[index])
    throw RuntimeFault(concat(
        path, ": checksum error in /", name_of(split), "/tokens, block ", block, " (tokens ",
        block * kShardBlockTokens, " to ", block * kShardBlockTokens + block_tokens(block) - 1,
        token_addresses.empty() ? std::string() : concat(", file byte ", token_addresses[index]),
        "): the file is damaged; delete it and run prepare again"));
  verified[index] = true;
}

const std::vector<char>& ShardReader::Impl::decompressed(std::int64_t block) {
  const auto found = std::find_if(cache.begin(), cache.end(),
                                  [&](const CachedBlock& entry) { return entry.block == block; });
  if (found != cache.end()) {
    cache.splice(cache.begin(), cache, found);
    return cache.front().bytes;
  }
  if (open_shards != nullptr) open_shards->use(*this);
  if (file == nullptr) file = std::make_unique<H5File>(path, H5File::Mode::read);
  CachedBlock entry{block,
                    std::vector<char>(static_cast<std::size_t>(block_tokens(block) * id_bytes))};
  file->read_raw(dataset("tokens"), id_type, block * kShardBlockTokens, block_tokens(block),
                 entry.bytes.data());
  if (!verified[static_cast<std::size_t>(block)]) check_block(block, entry.bytes.data());
  if (cache.size() == kCachedBlocks) cache.pop_back();
  cache.push_front(std::move(entry));
  return cache.front().bytes;
}

// Tokens [begin, end) counted from the block's start.
void ShardReader::Impl::read_in_block(std::int64_t block, std::int64_t begin, std::int64_t end,
                                      std::vector<std::int32_t>& ids) {
  const auto index = static_cast<std::size_t>(block);
  const char* bytes = nullptr;
  if (token_addresses.empty()) {
    bytes = decompressed(block).data() + begin * id_bytes;
  } else if (!verified[index]) {
    scratch.resize(static_cast<std::size_t>(kShardBlockTokens * id_bytes));
    read_bytes(token_addresses[index], block_tokens(block) * id_bytes, scratch.data());
    check_block(block, scratch.data());
    bytes = scratch.data() + begin * id_bytes;
  } else {
    scratch.resize(static_cast<std::size_t>(kShardBlockTokens * id_bytes));
    read_bytes(token_addresses[index] + begin * id_bytes, (end - begin) * id_bytes, scratch.data());
    bytes = scratch.data();
  }
  const std::size_t old_size = ids.size();
  ids.resize(old_size + static_cast<std::size_t>(end - begin));
  for (std::int64_t i = 0; i < end - begin; ++i) {
    std::uint32_t id = 0;  // little endian, as stored
    std::memcpy(&id, bytes + i * id_bytes, static_cast<std::size_t>(id_bytes));
    ids[old_size + static_cast<std::size_t>(i)] = static_cast<std::int32_t>(id);
  }
}

ShardReader::ShardReader(const std::string& path, Split split, OpenShards* open_shards)
    : impl_(std::make_unique<Impl>()) {
  impl_->open_shards = open_shards;
  impl_->path = path;
  impl_->split = split;
  try {
    impl_->load();
  } catch (const RuntimeFault& fault) {
    throw UserError(concat(
        path,
        ": is not a readable shard (truncated, damaged or not HDF5); delete it and run prepare "
        "again. ",
        fault.what()));
  }
}

ShardReader::~ShardReader() = default;
ShardReader::ShardReader(ShardReader&&) noexcept = default;

const std::string& ShardReader::path() const {
  return impl_->path;
}
const ShardHeader& ShardReader::header() const {
  return impl_->header;
}
std::int64_t ShardReader::num_documents() const {
  return impl_->num_documents;
}
std::int64_t ShardReader::num_tokens() const {
  return impl_->num_tokens;
}
std::uint64_t ShardReader::content_checksum() const {
  return impl_->content_checksum;
}

void ShardReader::read_offsets(std::int64_t begin, std::int64_t count,
                               std::int64_t* offsets) const {
  OPENMOE_CHECK(begin >= 0 && count >= 0 && begin + count <= impl_->num_documents, "documents [",
                begin, ", ", begin + count, ") of ", impl_->num_documents);
  impl_->read_bytes(impl_->offsets_address + begin * 8, (count + 1) * 8, offsets);
}

void ShardReader::read_tokens(std::int64_t begin, std::int64_t end,
                              std::vector<std::int32_t>& ids) {
  OPENMOE_CHECK(0 <= begin && begin <= end && end <= impl_->num_tokens, "tokens [", begin, ", ",
                end, ") of ", impl_->num_tokens);
  while (begin < end) {
    const std::int64_t block = begin / kShardBlockTokens;
    const std::int64_t block_begin = block * kShardBlockTokens;
    const std::int64_t stop = std::min(end, block_begin + kShardBlockTokens);
    impl_->read_in_block(block, begin - block_begin, stop - block_begin, ids);
    begin = stop;
  }
}

void ShardReader::read_parts(std::int64_t document, std::vector<std::int64_t>& ends) const {
  OPENMOE_CHECK(impl_->header.is_chat && document >= 0 && document < impl_->num_documents,
                "parts of document ", document);
  const auto at = static_cast<std::size_t>(document);
  ends.assign(impl_->part_ends.begin() + impl_->part_offsets[at],
              impl_->part_ends.begin() + impl_->part_offsets[at + 1]);
}

std::vector<Hash128> ShardReader::read_hashes() const {
  const H5File from(impl_->path, H5File::Mode::read);
  const auto words = impl_->read_all<std::uint64_t>(from, "document_hashes", "u64");
  std::vector<Hash128> hashes;
  for (std::size_t i = 0; i < words.size(); i += 2) hashes.push_back({words[i], words[i + 1]});
  return hashes;
}

std::vector<std::int64_t> ShardReader::read_records() const {
  return impl_->read_all<std::int64_t>(H5File(impl_->path, H5File::Mode::read), "document_records",
                                       "i64");
}

std::int64_t ShardReader::read_record(std::int64_t document) const {
  std::int64_t record = 0;
  H5File(impl_->path, H5File::Mode::read)
      .read_raw(impl_->dataset("document_records"), "i64", document, 1, &record);
  return record;
}

std::string ShardReader::read_tag(std::int64_t document) const {
  const H5File from(impl_->path, H5File::Mode::read);
  std::uint16_t index = 0;
  from.read_raw(impl_->dataset("document_tags"), "u16", document, 1, &index);
  return from.read_strings("tags").at(index);
}

std::vector<std::string> ShardReader::read_tags() const {
  const H5File from(impl_->path, H5File::Mode::read);
  const std::vector<std::string> names = from.read_strings("tags");
  std::vector<std::string> tags;
  for (const std::uint16_t index : impl_->read_all<std::uint16_t>(from, "document_tags", "u16"))
    tags.push_back(names.at(index));
  return tags;
}

std::vector<std::string> ShardReader::verify() {
  std::vector<std::string> problems;
  std::vector<std::int32_t> ids;
  impl_->verified.assign(impl_->verified.size(), false);
  impl_->cache.clear();
  for (std::int64_t block = 0; block < static_cast<std::int64_t>(impl_->block_checksums.size());
       ++block) {
    ids.clear();
    try {
      impl_->read_in_block(block, 0, impl_->block_tokens(block), ids);
      const auto limit = static_cast<std::int32_t>(impl_->header.vocab_size());
      const auto bad = std::find_if(ids.begin(), ids.end(),
                                    [&](std::int32_t id) { return id < 0 || id >= limit; });
      if (bad != ids.end())
        problems.push_back(concat(
            impl_->path, ": token ", block * kShardBlockTokens + (bad - ids.begin()), " of /",
            name_of(impl_->split), " is id ", *bad, ", beyond the vocabulary of ", limit));
    } catch (const RuntimeFault& fault) {
      problems.push_back(fault.what());
    }
  }
  return problems;
}

ShardHeader read_shard_header(const std::string& path) {
  try {
    return read_header(H5File(path, H5File::Mode::read));
  } catch (const RuntimeFault& fault) {
    throw UserError(concat(
        path,
        ": is not a readable shard (truncated, damaged or not HDF5); delete it and run prepare "
        "again. ",
        fault.what()));
  }
}

std::vector<std::string> list_shards(const std::string& folder) {
  std::vector<std::string> paths;
  if (!std::filesystem::is_directory(folder)) return paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == kShardEnding) paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace openmoe
