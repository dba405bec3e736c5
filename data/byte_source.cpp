#include "data/byte_source.h"

#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(const std::string& path)
      : path_(path), file_(std::fopen(path.c_str(), "rb"), &std::fclose) {
    if (file_ == nullptr)
      throw UserError(concat(path, ": cannot be opened: ", std::strerror(errno)));
  }
  std::size_t read(char* dst, std::size_t bytes) override {
    const std::size_t count = std::fread(dst, 1, bytes, file_.get());
    if (std::ferror(file_.get()) != 0)
      throw UserError(
          concat(path_, ": cannot be read at byte ", stored_, ": ", std::strerror(errno)));
    stored_ += static_cast<std::int64_t>(count);
    return count;
  }
  std::int64_t stored_bytes_read() const override { return stored_; }

 private:
  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::int64_t stored_ = 0;
};

// zlib's own file reader also takes several gzip members one after the other, as bgzip and cat
// write them.
class GzipSource : public ByteSource {
 public:
  explicit GzipSource(const std::string& path)
      : path_(path), file_(gzopen(path.c_str(), "rb"), &gzclose) {
    if (file_ == nullptr)
      throw UserError(concat(path, ": cannot be opened: ", std::strerror(errno)));
    gzbuffer(file_.get(), 1 << 18);
  }
  std::size_t read(char* dst, std::size_t bytes) override {
    const int count = gzread(file_.get(), dst, static_cast<unsigned>(bytes));
    int code = Z_OK;
    const char* reason = gzerror(file_.get(), &code);
    // A file that ends inside a member reads as a short count and this code.
    if (count < 0 || code == Z_BUF_ERROR)
      throw UserError(concat(path_, ": damaged or truncated gzip data after byte ", produced_,
                             " of the text: ", reason));
    produced_ += count;
    return static_cast<std::size_t>(count);
  }
  std::int64_t stored_bytes_read() const override { return gzoffset(file_.get()); }

 private:
  std::string path_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
  std::int64_t produced_ = 0;
};

class ZstdSource : public ByteSource {
 public:
  explicit ZstdSource(const std::string& path)
      : path_(path),
        file_(path),
        stream_(ZSTD_createDStream(), &ZSTD_freeDStream),
        buffer_(ZSTD_DStreamInSize()) {
    if (stream_ == nullptr) throw RuntimeFault("ZSTD_createDStream failed");
  }
  std::size_t read(char* dst, std::size_t bytes) override {
    ZSTD_outBuffer output{dst, bytes, 0};
    while (output.pos == 0) {
      // Output may remain inside the stream although all input is taken, hence the call even with
      // no new input.
      if (input_.pos == input_.size && !drain_) {
        input_ = {buffer_.data(), file_.read(buffer_.data(), buffer_.size()), 0};
        if (input_.size == 0) {
          if (within_frame_)
            throw UserError(
                concat(path_, ": truncated Zstandard data after byte ", produced_, " of the text"));
          break;
        }
      }
      const std::size_t code = ZSTD_decompressStream(stream_.get(), &output, &input_);
      if (ZSTD_isError(code) != 0)
        throw UserError(concat(path_, ": damaged Zstandard data after byte ", produced_,
                               " of the text: ", ZSTD_getErrorName(code)));
      within_frame_ = code != 0;
      drain_ = output.pos == output.size && within_frame_;
    }
    produced_ += static_cast<std::int64_t>(output.pos);
    return output.pos;
  }
  std::int64_t stored_bytes_read() const override { return file_.stored_bytes_read(); }

 private:
  std::string path_;
  PlainSource file_;
  std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream*)> stream_;
  std::vector<char> buffer_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool within_frame_ = false;
  bool drain_ = false;
  std::int64_t produced_ = 0;
};

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::unique_ptr<ByteSource> open_bytes(const std::string& path) {
  if (ends_with(path, ".gz")) return std::make_unique<GzipSource>(path);
  if (ends_with(path, ".zst")) return std::make_unique<ZstdSource>(path);
  return std::make_unique<PlainSource>(path);
}

}  // namespace openmoe
