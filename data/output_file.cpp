#include "data/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {

OutputFile::OutputFile(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw UserError(path + ": cannot be created: " + std::strerror(errno));
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

void OutputFile::write(const void* src, std::int64_t size_bytes) {
  OPENMOE_CHECK(descriptor_ >= 0, path_, " is closed");
  const auto* from = static_cast<const char*>(src);
  while (size_bytes > 0) {
    const ssize_t put = ::write(descriptor_, from, static_cast<std::size_t>(size_bytes));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw RuntimeFault(concat("write to ", path_, ": ", std::strerror(errno)));
    from += put;
    size_bytes -= put;
  }
}

void OutputFile::close() {
  OPENMOE_CHECK(descriptor_ >= 0, path_, " is closed");
  const bool on_disk = ::fsync(descriptor_) == 0;
  const int sync_error = errno;
  const bool closed = ::close(std::exchange(descriptor_, -1)) == 0;
  if (!on_disk || !closed)
    throw RuntimeFault(concat(on_disk ? "close of " : "fsync of ", path_, ": ",
                              std::strerror(on_disk ? errno : sync_error)));
}

}  // namespace openmoe
