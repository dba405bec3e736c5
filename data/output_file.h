// OutputFile: a new file written from front to back. A move-only handle.
#pragma once

#include <cstdint>
#include <string>

namespace openmoe {

class OutputFile {
 public:
  // Creates the file, or empties it. Throws UserError when it cannot be created.
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;

  const std::string& path() const { return path_; }
  // Throws RuntimeFault when the bytes cannot be written, such as on a full disk.
  void write(const void* src, std::int64_t size_bytes);
  // Brings everything to the disk and closes; throws RuntimeFault when that fails (the destructor
  // cannot).
  void close();

 private:
  std::string path_;
  int descriptor_ = -1;
};

}  // namespace openmoe
