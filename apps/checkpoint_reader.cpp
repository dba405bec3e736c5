#include "apps/checkpoint_reader.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/base/error.h"
#include "data/hash.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kUseEarlier = "; remove this folder to go on from the checkpoint before it";

}  // namespace

std::string read_manifest_text(const std::string& folder) {
  const fs::path path = fs::path(folder) / kCheckpointManifest;
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw UserError(concat(path.string(),
                           ": cannot be read: not a checkpoint, or one whose save was "
                           "interrupted",
                           kUseEarlier));
  return {std::istreambuf_iterator<char>(file), {}};
}

CheckpointManifest read_manifest(const std::string& folder) {
  return parse_manifest(read_manifest_text(folder), fs::path(folder) / kCheckpointManifest);
}

CheckpointReader::CheckpointReader(const std::string& folder, const CheckpointManifest& manifest)
    : folder_(folder), manifest_(manifest) {}

template <typename Read>
void CheckpointReader::read_slices(const CheckpointTensor& tensor, std::int64_t begin, Tensor dst,
                                   Read&& read) {
  const std::int64_t end = begin + dst.size(0);
  for (const CheckpointSlice& slice : tensor.slices) {
    const std::int64_t first = std::max(begin, slice.begin);
    const std::int64_t last = std::min(end, slice.end);
    if (first < last)
      read(open(slice.file), first - slice.begin, dst.rows(first - begin, last - begin));
  }
}

void CheckpointReader::read(const CheckpointTensor& tensor, std::int64_t begin, Tensor dst) {
  read_slices(tensor, begin, dst, [&](const H5File& file, std::int64_t first, Tensor rows) {
    file.read_rows(tensor.name, first, rows);
  });
}

void CheckpointReader::read_block(const CheckpointTensor& tensor, std::int64_t begin,
                                  std::int64_t first_column, Tensor dst) {
  read_slices(tensor, begin, dst, [&](const H5File& file, std::int64_t first, Tensor rows) {
    file.read_block(tensor.name, first, first_column, rows);
  });
}

const H5File& CheckpointReader::open(const std::string& name) {
  const auto known = files_.find(name);
  if (known != files_.end()) return known->second;
  const CheckpointFile& expected = manifest_.file(name);
  const std::string path = fs::path(folder_) / name;
  std::error_code error;
  const auto bytes = static_cast<std::int64_t>(fs::file_size(path, error));
  if (error)
    throw UserError(concat(path, ": missing or unreadable: ", error.message(), kUseEarlier));
  if (bytes != expected.bytes)
    throw UserError(concat(path, ": has ", bytes, " bytes, the manifest says ", expected.bytes,
                           ": truncated or replaced", kUseEarlier));
  const std::string found = sha256_file(path);
  if (found != expected.sha256)
    throw UserError(concat(path, ": its SHA-256 is ", found, ", the manifest says ",
                           expected.sha256, ": the file was altered", kUseEarlier));
  return files_.emplace(name, H5File(path, H5File::Mode::read)).first->second;
}

}  // namespace openmoe
