#include "apps/dumped_step.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/row_json.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "data/durable_files.h"

namespace openmoe {

std::string dump_step(BatchStream& stream, std::int64_t step, const std::string& run_folder) {
  const std::string folder = run_folder + "/nonfinite";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw RuntimeFault(concat(folder, ": cannot be made: ", error.message()));
  const std::int64_t num_rows = stream.recipe().data.batch_rows;
  Batch batch;
  stream.read(step, 0, num_rows, batch);
  std::string text;
  for (std::int64_t row = 0; row < num_rows; ++row)
    text += to_line(row_as_json(stream, step, 0, batch, row)) + "\n";
  char name[48];
  std::snprintf(name, sizeof name, "/step-%08lld.jsonl", static_cast<long long>(step));
  replace_file(folder + name, text);
  return folder + name;
}

}  // namespace openmoe
