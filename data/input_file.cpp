#include "data/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {

InputFile::InputFile(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) throw UserError(path + ": cannot be read: " + std::strerror(errno));
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw UserError(path + ": is not a regular file");
  }
  size_bytes_ = status.st_size;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_bytes_(other.size_bytes_) {}

void InputFile::read_at(std::int64_t offset, void* dst, std::int64_t size_bytes) const {
  OPENMOE_CHECK(offset >= 0 && size_bytes >= 0, "offset ", offset, ", ", size_bytes, " bytes");
  auto* to = static_cast<char*>(dst);
  while (size_bytes > 0) {
    const ssize_t got =
        ::pread(descriptor_, to, static_cast<std::size_t>(size_bytes), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw RuntimeFault(
          concat("pread of ", path_, " at byte ", offset, ": ", std::strerror(errno)));
    if (got == 0)
      throw UserError(concat(path_, ": ends at byte ", offset, ", ", size_bytes,
                             " bytes too early; it is truncated"));
    to += got;
    offset += got;
    size_bytes -= got;
  }
}

}  // namespace openmoe
