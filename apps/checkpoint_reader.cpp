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

void CheckpointReader::read(const CheckpointTensor& tensor, const Piece& box, Tensor dst) {
  for (const auto& [file, slice] : tensor.slices) {
    Piece part = box;  // what the slice has of the box, as a box of the slice's dataset
    for (int axis = 0; axis < box.size.rank; ++axis) {
      const auto at = static_cast<std::size_t>(axis);
      const std::int64_t first = std::max(box.global_begin[axis], slice.global_begin[axis]);
      const std::int64_t last = std::min(box.global_begin[axis] + box.size[axis],
                                         slice.global_begin[axis] + slice.size[axis]);
      part.size.sizes[at] = std::max<std::int64_t>(0, last - first);
      part.global_begin.sizes[at] = first - slice.global_begin[axis] + slice.local_begin[axis];
      part.local_begin.sizes[at] = first - box.global_begin[axis] + box.local_begin[axis];
    }
    if (part.size.num_elements() > 0) open(file).read_box(tensor.name, part, dst);
  }
}

void CheckpointReader::read(const CheckpointTensor& tensor, std::int64_t begin, Tensor dst,
                            std::int64_t first_column) {
  Piece box = rows_piece(begin, dst.shape);
  box.global_begin.sizes[static_cast<std::size_t>(dst.shape.rank - 1)] += first_column;
  read(tensor, box, dst);
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
