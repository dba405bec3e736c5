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
std::uint64_t index_checksum(const std::vector<std::int64_t>& offsets,
                             const std::vector<std::uint64_t>& hashes,
                             const std::vector<std::int64_t>& records,
                             const std::vector<std::uint16_t>& tags);
void write_header(H5File& file, const ShardHeader& header);
ShardHeader read_header(const H5File& file);

}  // namespace openmoe
