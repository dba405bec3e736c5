// How the folders of checkpoints are called.
#pragma once

#include <filesystem>
#include <string>

namespace openmoe {

inline constexpr const char* kCheckpointPrefix = "step-";
inline constexpr const char* kHiddenCheckpointPrefix = ".step-";  // written or removed: never read

// Where a checkpoint's folder is while it is written or removed.
inline std::string hidden_checkpoint(const std::string& folder, const char* purpose) {
  const std::filesystem::path path(folder);
  return path.parent_path() / ("." + path.filename().string() + purpose);
}

}  // namespace openmoe
