#include "data/durable_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

[[noreturn]] void fault(const char* call, const std::string& path) {
  throw RuntimeFault(concat(call, " failed on ", path, ": ", std::strerror(errno)));
}

// Owns one file descriptor.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : path_(path), fd_(::open(path.c_str(), flags, 0666)) {
    if (fd_ < 0) fault("open", path);
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void write(const std::string& content) {
    for (std::size_t done = 0; done < content.size();) {
      const ssize_t count = ::write(fd_, content.data() + done, content.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fault("write", path_);
      done += static_cast<std::size_t>(count);
    }
  }
  void sync() {
    // Some network file systems cannot sync a folder and say so with EINVAL.
    if (::fsync(fd_) != 0 && errno != EINVAL) fault("fsync", path_);
  }
  // A full disk may show only here.
  void close() {
    if (::close(std::exchange(fd_, -1)) != 0) fault("close", path_);
  }

 private:
  std::string path_;
  int fd_;
};

}  // namespace

void sync_path(const std::string& path) {
  Descriptor file(path, O_RDONLY);
  file.sync();
}

void write_and_sync(const std::string& path, const std::string& content) {
  Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC);
  file.write(content);
  file.sync();
  file.close();
}

void publish_file(const std::string& temporary, const std::string& to) {
  sync_path(temporary);
  if (::rename(temporary.c_str(), to.c_str()) != 0) fault("rename", to);
}

void replace_file(const std::string& path, const std::string& content) {
  const std::string temporary = path + ".tmp";
  write_and_sync(temporary, content);
  publish_file(temporary, path);
}

void swap_into_place(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return;
  // `to` is a folder with content.
  if (errno != ENOTEMPTY && errno != EEXIST) fault("rename", to);
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return;
  // A file system without the exchange: for a moment nothing is at `to`.
  const std::string aside = from + ".replaced";
  if (::rename(to.c_str(), aside.c_str()) != 0) fault("rename", to);
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int reason = errno;
    ::rename(aside.c_str(), to.c_str());  // the old one comes back
    errno = reason;
    fault("rename", to);
  }
  if (::rename(aside.c_str(), from.c_str()) != 0) fault("rename", aside);
}

void publish_folder(const std::string& temporary, const std::string& to) {
  sync_path(temporary);
  swap_into_place(temporary, to);
  const auto parent = std::filesystem::path(to).parent_path();
  sync_path(parent.empty() ? "." : parent.string());
  std::error_code ignored;
  std::filesystem::remove_all(temporary, ignored);
}

}  // namespace openmoe
