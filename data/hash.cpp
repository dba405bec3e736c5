#include "data/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {

std::uint64_t xxh3_64(const void* data, std::size_t bytes) {
  return XXH3_64bits(data, bytes);
}

Hash128 xxh3_128(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

struct Sha256::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~Impl() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {
  if (impl_->context == nullptr || EVP_DigestInit_ex(impl_->context, EVP_sha256(), nullptr) != 1)
    throw RuntimeFault("EVP_DigestInit_ex failed: OpenSSL offers no SHA-256 here");
}

Sha256::~Sha256() = default;

void Sha256::update(const void* data, std::size_t bytes) {
  if (EVP_DigestUpdate(impl_->context, data, bytes) != 1)
    throw RuntimeFault("EVP_DigestUpdate failed");
}

std::string Sha256::finish() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_DigestFinal_ex(impl_->context, digest, &size) != 1)
    throw RuntimeFault("EVP_DigestFinal_ex failed");
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += kDigits[digest[i] >> 4];
    text += kDigits[digest[i] & 15];
  }
  return text;
}

std::string sha256_file(const std::string& path, const std::function<void()>& between_blocks) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (file == nullptr) throw UserError(concat(path, ": cannot be opened: ", std::strerror(errno)));
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  for (;;) {
    const std::size_t bytes = std::fread(buffer.data(), 1, buffer.size(), file.get());
    if (bytes == 0) break;
    hash.update(buffer.data(), bytes);
    if (between_blocks) between_blocks();
  }
  if (std::ferror(file.get()) != 0)
    throw UserError(concat(path, ": cannot be read: ", std::strerror(errno)));
  return hash.finish();
}

}  // namespace openmoe
