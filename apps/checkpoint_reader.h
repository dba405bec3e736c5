// CheckpointReader: tensors of a checkpoint, any rows of them, from whichever files hold those.
// Each file is verified against the manifest's SHA-256 once, before its first use. On one rank; see
// checkpoint.h for what a checkpoint is.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "apps/checkpoint_manifest.h"
#include "data/h5_file.h"

namespace openmoe {

inline constexpr const char* kCheckpointManifest = "manifest.json";

// Throw UserError when the folder holds no whole checkpoint.
std::string read_manifest_text(const std::string& folder);
CheckpointManifest read_manifest(const std::string& folder);

class CheckpointReader {
 public:
  // `manifest` must outlive this.
  CheckpointReader(const std::string& folder, const CheckpointManifest& manifest);

  // Rows [begin, begin + dst.size(0)) of a global tensor. Throws UserError when a file is missing,
  // truncated or altered.
  void read(const CheckpointTensor& tensor, std::int64_t begin, Tensor dst);
  // The same of rank 2 or 3, and of each row the columns of the last axis from `first_column` that
  // dst has room for.
  void read_block(const CheckpointTensor& tensor, std::int64_t begin, std::int64_t first_column,
                  Tensor dst);

 private:
  // Calls read(file, first row in the file, rows of dst) for each file that holds some.
  template <typename Read>
  void read_slices(const CheckpointTensor& tensor, std::int64_t begin, Tensor dst, Read&& read);
  const H5File& open(const std::string& name);

  std::string folder_;
  const CheckpointManifest& manifest_;
  std::map<std::string, H5File> files_;
};

}  // namespace openmoe
