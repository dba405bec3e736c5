// What the writer and the reader of shards share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/shard.h"

namespace openmoe {

class H5File;

inline constexpr const char* kShardFormat = "openmoe-shard";
inline constexpr std::int64_t kShardVersion = 1;
inline constexpr const char* kShardEnding = ".h5";

inline std::string tokens_name(Split split) {
  return std::string(name_of(split)) + "/tokens";
}
std::string to_hex(std::uint64_t value);  // 16 digits
// What stands beside the tokens of a split.
struct DocumentIndex {
  std::vector<std::int64_t> offsets;
  std::vector<std::uint64_t> hashes;  // two per document
  std::vector<std::int64_t> records;
  std::vector<std::uint16_t> tags;
  std::vector<std::int64_t> part_offsets;  // chat only, else empty
  std::vector<std::int64_t> part_ends;

  std::uint64_t checksum() const;
};
void write_header(H5File& file, const ShardHeader& header);
ShardHeader read_header(const H5File& file);

}  // namespace openmoe
