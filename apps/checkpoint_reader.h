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

  // A box of a global tensor into its place in dst. Throws UserError when a file is missing,
  // truncated or altered.
  void read(const CheckpointTensor& tensor, const Piece& box, Tensor dst);
  // Rows [begin, begin + dst.size(0)); of them, the columns of the last axis from `first_column`
  // that dst has room for.
  void read(const CheckpointTensor& tensor, std::int64_t begin, Tensor dst,
            std::int64_t first_column = 0);

 private:
  const H5File& open(const std::string& name);

  std::string folder_;
  const CheckpointManifest& manifest_;
  std::map<std::string, H5File> files_;
};

}  // namespace openmoe
