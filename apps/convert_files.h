// The files around the weights of a Hugging Face folder, and folders that appear whole or not at
// all.
#pragma once

#include <filesystem>
#include <string>

namespace openmoe {

// Where an import keeps config.json and the files that travel along, below a run folder.
inline constexpr const char* kCompanionFolder = "huggingface";

// A folder being written under a hidden name beside `to`; removed by the destructor unless
// published.
class NewFolder {
 public:
  // Throws UserError when `to` exists and is not an empty folder, or the place cannot be written.
  explicit NewFolder(const std::string& to);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  const std::filesystem::path& path() const { return temporary_; }
  void publish();

 private:
  std::filesystem::path to_, temporary_;
};

// Copies tokenizer files, generation_config.json, chat templates and modelling code (*.py) from one
// folder to another. Folders are left out. Returns the number of files.
int copy_companions(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace openmoe
