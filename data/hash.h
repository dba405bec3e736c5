// Hashes of content: XXH3 for checksums and duplicate search (fast, not cryptographic), SHA-256 for
// identity of files.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace openmoe {

struct Hash128 {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  bool operator==(const Hash128&) const = default;
};

std::uint64_t xxh3_64(const void* data, std::size_t bytes);
Hash128 xxh3_128(std::string_view bytes);

// Streaming SHA-256; digests are 64 lower-case hex digits.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, std::size_t bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }
  std::string finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Throws UserError when the file cannot be read. `between_blocks`, if any, is called after every
// MiB, and may throw to end it.
std::string sha256_file(const std::string& path, const std::function<void()>& between_blocks = {});

}  // namespace openmoe
