#include "apps/run_log.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/durable_files.h"

namespace openmoe {
namespace {

std::string reason() {
  return errno != 0 ? std::strerror(errno) : "unknown reason";
}

// Keeps the rows of `path` whose step is below `first_step`; a torn last line is dropped too. The
// file is replaced whole or not at all.
void cut_rows(const std::string& path, std::int64_t first_step) {
  std::string kept;
  std::ifstream in(path);
  if (!in) throw UserError(concat("cannot read ", path, ": ", reason(), "; choose another --out"));
  for (std::string line; std::getline(in, line);) {
    const auto row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool has_step =
        row.is_object() && row.contains("step") && row["step"].is_number_integer();
    if (has_step && row["step"].get<std::int64_t>() < first_step) kept += line + '\n';
  }
  if (in.bad()) throw RuntimeFault(concat("cannot read ", path, ": ", reason()));
  replace_file(path, kept);
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

using Scalars = std::vector<std::pair<std::string, double>>;
using Json = nlohmann::ordered_json;

// All numbers of a layer's row but counts of tokens.
void add_routing(Scalars& scalars, const Json& row) {
  const std::string prefix = concat("routing/layer_", row["layer"].get<std::int64_t>(), "/");
  for (const auto& item : row.items()) {
    if (item.value().is_number_float())
      scalars.emplace_back(prefix + item.key(), item.value().get<double>());
    for (const char* by_expert : {"expert_share", "first", "second", "kept"})
      if (item.key() == by_expert)
        for (std::size_t e = 0; e < item.value().size(); ++e)
          scalars.emplace_back(concat(prefix, by_expert, "/", e), item.value()[e].get<double>());
    for (const char* lost : {"lost_first", "lost_second", "lost_both"}) {
      if (item.key() == "by_source")
        for (const auto& source : item.value().items())
          scalars.emplace_back(concat(prefix, lost, "_by_source/", source.key()),
                               source.value()[lost].get<double>());
      if (item.key() == "by_position")
        for (std::size_t bucket = 0; bucket < item.value().size(); ++bucket)
          scalars.emplace_back(concat(prefix, lost, "_by_position/", bucket),
                               item.value()[bucket][lost].get<double>());
    }
  }
}

// Losses, accuracy, gradient norm, learning rate, speed; routing where the step was watched.
Scalars scalars_of_step(const Json& row) {
  Scalars scalars;
  for (const auto& item : row.items())
    if (item.value().is_number_float())
      scalars.emplace_back("train/" + item.key(), item.value().get<double>());
  if (row.contains("routing"))
    for (const Json& layer : row["routing"]) add_routing(scalars, layer);
  return scalars;
}

}  // namespace

RunLog::RunLog(const std::string& folder, std::int64_t first_step)
    : folder_(folder),
      metrics_(open_for_append(folder + "/metrics.jsonl", first_step)),
      validation_(open_for_append(folder + "/validation.jsonl", first_step)),
      events_(folder + "/tensorboard", first_step) {}

void RunLog::write_recipe(const std::string& recipe_json) {
  replace_file(folder_ + "/recipe.json", recipe_json + "\n");
}

void RunLog::go_back(std::int64_t first_step) {
  metrics_ = open_for_append(folder_ + "/metrics.jsonl", first_step);
  validation_ = open_for_append(folder_ + "/validation.jsonl", first_step);
  events_.start(first_step);
}

void RunLog::write_step(const nlohmann::ordered_json& row) {
  write_row(metrics_, folder_ + "/metrics.jsonl", row);
  events_.write(row["step"].get<std::int64_t>(), scalars_of_step(row));
}

void RunLog::write_validation(const nlohmann::ordered_json& row) {
  write_row(validation_, folder_ + "/validation.jsonl", row);
  const std::string prefix = "validation/" + row["source"].get<std::string>() + "/";
  events_.write(row["step"].get<std::int64_t>(),
                {{prefix + "cross_entropy", row["cross_entropy"].get<double>()},
                 {prefix + "accuracy", row["accuracy"].get<double>()}});
}

}  // namespace openmoe
