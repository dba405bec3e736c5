#include "apps/convert_files.h"

#include <algorithm>
#include <string_view>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/durable_files.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kCompanions[] = {
    "tokenizer.json",    "tokenizer_config.json",  "special_tokens_map.json",
    "added_tokens.json", "generation_config.json", "vocab.json",
    "merges.txt",        "chat_template.json",     "chat_template.jinja"};

bool is_companion(const std::string& name) {
  return std::find(std::begin(kCompanions), std::end(kCompanions), name) != std::end(kCompanions) ||
         name.ends_with(".model") || name.ends_with(".py");
}

}  // namespace

NewFolder::NewFolder(const std::string& to) {
  try {
    to_ = fs::absolute(to).lexically_normal();
    if (!to_.has_filename()) to_ = to_.parent_path();  // "folder/"
    if (fs::exists(to_) && !(fs::is_directory(to_) && fs::is_empty(to_)))
      throw UserError(to + ": exists already; name a folder that does not, or remove it");
    fs::create_directories(to_.parent_path());
    temporary_ = to_.parent_path() / ("." + to_.filename().string() + ".partial");
    fs::remove_all(temporary_);  // of an attempt that was interrupted
    fs::create_directory(temporary_);
  } catch (const fs::filesystem_error& error) {
    throw UserError(
        concat(error.path1().string(), ": cannot be written: ", error.code().message()));
  }
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void NewFolder::publish() {
  publish_folder(temporary_, to_);
  temporary_.clear();
}

int copy_companions(const fs::path& from, const fs::path& to) {
  int copied = 0;
  try {
    for (const auto& entry : fs::directory_iterator(from)) {
      if (!entry.is_regular_file() || !is_companion(entry.path().filename())) continue;
      fs::copy_file(entry.path(), to / entry.path().filename());
      ++copied;
    }
  } catch (const fs::filesystem_error& error) {
    throw RuntimeFault(concat("copying ", error.path1().string(), " to ", to.string(), ": ",
                              error.code().message()));
  }
  return copied;
}

}  // namespace openmoe
