#include "apps/run_log.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

std::string reason() {
  return errno != 0 ? std::strerror(errno) : "unknown reason";
}

// Keeps the rows of `path` whose step is below `first_step`; a torn last line is dropped too.
void cut_rows(const std::string& path, std::int64_t first_step) {
  std::vector<std::string> kept;
  {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);) {
      const auto row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (row.is_object() && row.value("step", first_step) < first_step) kept.push_back(line);
    }
  }
  const std::string temporary = path + ".tmp";
  std::ofstream out(temporary, std::ios::trunc);
  for (const std::string& line : kept) out << line << '\n';
  out.close();
  if (!out)
    throw UserError(concat("cannot write ", temporary, ": ", reason(), "; choose another --out"));
  std::filesystem::rename(temporary, path);
}

std::ofstream open_for_append(const std::string& path, std::int64_t first_step) {
  if (std::filesystem::exists(path)) cut_rows(path, first_step);
  errno = 0;
  std::ofstream out(path, std::ios::app);
  if (!out)
    throw UserError(concat("cannot write ", path, ": ", reason(), "; choose another --out"));
  return out;
}

void write_row(std::ofstream& out, const std::string& path, const nlohmann::ordered_json& row) {
  errno = 0;
  out << row.dump() << std::endl;  // flushed: a killed run keeps its rows
  if (!out) throw RuntimeFault(concat("cannot write ", path, ": ", reason()));
}

}  // namespace

RunLog::RunLog(const std::string& folder, std::int64_t first_step)
    : folder_(folder),
      metrics_(open_for_append(folder + "/metrics.jsonl", first_step)),
      validation_(open_for_append(folder + "/validation.jsonl", first_step)) {}

void RunLog::write_recipe(const std::string& recipe_json) {
  const std::string path = folder_ + "/recipe.json";
  errno = 0;
  std::ofstream out(path, std::ios::trunc);
  out << recipe_json << std::endl;
  if (!out) throw RuntimeFault(concat("cannot write ", path, ": ", reason()));
}

void RunLog::write_step(const nlohmann::ordered_json& row) {
  write_row(metrics_, folder_ + "/metrics.jsonl", row);
}

void RunLog::write_validation(const nlohmann::ordered_json& row) {
  write_row(validation_, folder_ + "/validation.jsonl", row);
}

}  // namespace openmoe
