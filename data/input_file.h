// InputFile: a regular file read at any place. A move-only handle.
#pragma once

#include <cstdint>
#include <string>

namespace openmoe {

class InputFile {
 public:
  // Throws UserError when there is no such file, or it is a folder or not readable.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t size_bytes() const { return size_bytes_; }
  // Bytes [offset, offset + size_bytes) into dst. Throws UserError when the file ends before,
  // RuntimeFault when the disk fails.
  void read_at(std::int64_t offset, void* dst, std::int64_t size_bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  std::int64_t size_bytes_ = 0;
};

}  // namespace openmoe
