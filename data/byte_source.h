// ByteSource: the decompressed bytes of a file, plain, gzip (.gz) or Zstandard (.zst), chosen by
// the file name's ending.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace openmoe {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Fills up to `bytes`; 0 at the end. Throws UserError when the file is unreadable, corrupt or
  // truncated.
  virtual std::size_t read(char* dst, std::size_t bytes) = 0;
  virtual std::int64_t stored_bytes_read() const = 0;  // of the file itself
};

std::unique_ptr<ByteSource> open_bytes(const std::string& path);

}  // namespace openmoe
