#include "apps/hf_weights.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/config_errors.h"
#include "core/config/json_document.h"
#include "data/durable_files.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFiles[] = {"model.safetensors", "pytorch_model.bin"};
constexpr const char* kIndexSuffix = ".index.json";

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// {"weight_map": {tensor: file}} of an index file.
std::map<std::string, std::string> read_weight_map(const std::string& path) {
  ConfigErrors errors;
  const Json index = parse_json_document(read_text_file(path, "index"), path, errors);
  errors.throw_if_any("index");
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object())
    throw UserError(path +
                    ": has no weight_map, allowed: {\"weight_map\": {\"tensor\": \"file\"}}");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string())
      throw UserError(path + ": tensor " + in_quotes(tensor) + " is in " + describe_json(file) +
                      ", allowed: the name of a file");
    const std::string name = file.get<std::string>();
    // The index comes from the same stranger as the weights: it may not reach outside its folder.
    if (name.empty() || name.find('/') != std::string::npos || name.front() == '.')
      throw UserError(path + ": tensor " + in_quotes(tensor) + " is in " + in_quotes(name) +
                      ", allowed: a file of the same folder");
    files[tensor] = name;
  }
  return files;
}

}  // namespace

HfWeights::HfWeights(const std::string& folder) {
  for (const char* name : kSingleFiles) {
    const fs::path single = fs::path(folder) / name, index = single.string() + kIndexSuffix;
    if (!is_file(single) && !is_file(index)) continue;
    if (is_file(single)) {
      origin_ = single;
      add_file(single);
    } else {
      origin_ = index;
      add_indexed(folder, index);
    }
    return;
  }
  throw UserError(folder +
                  ": holds no weights, allowed: model.safetensors, model.safetensors.index.json, "
                  "pytorch_model.bin or pytorch_model.bin.index.json");
}

void HfWeights::add_file(const std::string& path) {
  files_.push_back(open_weight_file(path));
  const std::vector<WeightInfo>& weights = files_.back()->weights();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto [known, is_new] = places_.emplace(weights[i].name, Place{files_.size() - 1, i});
    if (!is_new)
      throw UserError(path + ": tensor " + in_quotes(weights[i].name) + " stands in " +
                      files_[known->second.file]->path() + " too; one of the two must go");
  }
}

void HfWeights::add_indexed(const std::string& folder, const std::string& index_path) {
  const auto map = read_weight_map(index_path);
  std::map<std::string, std::size_t> opened;
  for (const auto& [tensor, file] : map) {
    if (!opened.contains(file)) {
      if (!is_file(fs::path(folder) / file))
        throw UserError(index_path + ": tensor " + in_quotes(tensor) + " is in " + in_quotes(file) +
                        ", which is not in the folder");
      opened[file] = files_.size();
      add_file(fs::path(folder) / file);
    }
    const auto place = places_.find(tensor);
    if (place == places_.end() || place->second.file != opened[file])
      throw UserError(index_path + ": tensor " + in_quotes(tensor) + " is not in " +
                      in_quotes(file) + ", where the index puts it");
  }
  for (const auto& [tensor, place] : places_)
    if (!map.contains(tensor))
      throw UserError(files_[place.file]->path() + ": tensor " + in_quotes(tensor) +
                      " is not in the index " + index_path);
}

const WeightInfo* HfWeights::find(const std::string& name) const {
  const auto place = places_.find(name);
  return place == places_.end() ? nullptr
                                : &files_[place->second.file]->weights()[place->second.index];
}

std::vector<std::string> HfWeights::names() const {
  std::vector<std::string> all;
  for (const auto& [name, place] : places_) all.push_back(name);
  std::sort(all.begin(), all.end());
  return all;
}

void HfWeights::read_rows(const std::string& name, std::int64_t begin, std::int64_t rows,
                          float* dst) {
  const Place place = places_.at(name);
  files_[place.file]->read_rows(place.index, begin, rows, dst);
}

HfWeightsWriter::HfWeightsWriter(const std::string& folder, const std::vector<WeightInfo>& weights,
                                 std::int64_t max_file_bytes)
    : folder_(folder) {
  std::int64_t file_bytes = 0;
  for (const WeightInfo& weight : weights) {
    const std::int64_t bytes = weight.num_elements() * size_of(weight.type);
    if (files_.empty() || (file_bytes > 0 && file_bytes + bytes > max_file_bytes)) {
      files_.emplace_back();
      file_bytes = 0;
    }
    files_.back().weights.push_back(weight);
    files_.back().elements += weight.num_elements();
    file_bytes += bytes;
  }
  for (std::size_t i = 0; i < files_.size(); ++i) files_[i].name = file_name(i);
}

std::string HfWeightsWriter::file_name(std::size_t index) const {
  if (files_.size() == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, files_.size());
  return name;
}

void HfWeightsWriter::append(const float* values, std::int64_t count) {
  if (writer_ && written_ == files_[current_].elements) {
    writer_->close();
    writer_.reset();
    written_ = 0;
    ++current_;
  }
  // Transformers asks for the format key: the weights are laid out as PyTorch has them.
  if (!writer_)
    writer_ = std::make_unique<SafetensorsWriter>(
        (fs::path(folder_) / files_.at(current_).name).string(), files_[current_].weights,
        SafetensorsWriter::Metadata{{"format", "pt"}});
  writer_->append(values, count);
  written_ += count;
}

void HfWeightsWriter::close() {
  OPENMOE_CHECK(writer_ != nullptr && current_ + 1 == files_.size(), "not all files are written");
  writer_->close();
  if (files_.size() == 1) return;
  std::int64_t total_bytes = 0;
  Json map = Json::object();
  for (const File& file : files_) {
    for (const WeightInfo& weight : file.weights) {
      map[weight.name] = file.name;
      total_bytes += weight.num_elements() * size_of(weight.type);
    }
  }
  const Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", map}};
  write_and_sync((fs::path(folder_) / "model.safetensors.index.json").string(),
                 index.dump(2) + "\n");
}

}  // namespace openmoe
