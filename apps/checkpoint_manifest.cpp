#include "apps/checkpoint_manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "data/hash.h"

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kFormat = 1;

Json to_json(const CheckpointFile& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}};
}

Json to_json(const CheckpointTensor& tensor) {
  Json shape = Json::array();
  for (int axis = 0; axis < tensor.shape.rank; ++axis) shape.push_back(tensor.shape[axis]);
  Json slices = Json::array();
  for (const CheckpointSlice& slice : tensor.slices)
    slices.push_back({{"file", slice.file}, {"begin", slice.begin}, {"end", slice.end}});
  return {{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", shape}, {"slices", slices}};
}

CheckpointFile file_from(const Json& json) {
  return {json.at("name").get<std::string>(), json.at("bytes").get<std::int64_t>(),
          json.at("sha256").get<std::string>()};
}

CheckpointTensor tensor_from(const Json& json) {
  CheckpointTensor tensor;
  tensor.name = json.at("name").get<std::string>();
  tensor.dtype = json.at("dtype").get<std::string>();
  for (const Json& size : json.at("shape")) {
    OPENMOE_CHECK(tensor.shape.rank < Shape::kMaxRank, tensor.name);
    tensor.shape.sizes[static_cast<std::size_t>(tensor.shape.rank++)] = size.get<std::int64_t>();
  }
  for (const Json& slice : json.at("slices"))
    tensor.slices.push_back({slice.at("file").get<std::string>(),
                             slice.at("begin").get<std::int64_t>(),
                             slice.at("end").get<std::int64_t>()});
  return tensor;
}

template <typename Item>
Json list_of(const std::vector<Item>& items) {
  Json list = Json::array();
  for (const Item& item : items) list.push_back(to_json(item));
  return list;
}

// Slices in order that leave no row out and name files of the manifest.
bool is_covered(const CheckpointManifest& manifest, const CheckpointTensor& tensor) {
  std::int64_t next = 0;
  for (const CheckpointSlice& slice : tensor.slices) {
    if (slice.begin != next || slice.end < slice.begin) return false;
    const auto is_named = [&](const CheckpointFile& file) { return file.name == slice.file; };
    if (std::none_of(manifest.files.begin(), manifest.files.end(), is_named)) return false;
    next = slice.end;
  }
  return tensor.shape.rank > 0 && next == tensor.shape[0];
}

CheckpointManifest manifest_from(const Json& json) {
  CheckpointManifest manifest;
  manifest.meta = {.step = json.at("step").get<std::int64_t>(),
                   .positions = json.at("positions").get<std::int64_t>(),
                   .recipe_json = json.at("recipe").dump(2),
                   .data_fingerprint = json.at("data_fingerprint").get<std::string>(),
                   .tokenizer_sha256 = json.value("tokenizer_sha256", ""),
                   .trainer_state = json.contains("trainer") ? json.at("trainer").dump() : ""};
  const Json& grid = json.at("grid");
  manifest.dp = grid.at("dp").get<std::int64_t>();
  manifest.ep = grid.at("ep").get<std::int64_t>();
  manifest.tp = grid.at("tp").get<std::int64_t>();
  for (const Json& file : json.at("files")) manifest.files.push_back(file_from(file));
  for (const Json& tensor : json.at("tensors")) manifest.tensors.push_back(tensor_from(tensor));
  return manifest;
}

}  // namespace

const CheckpointFile& CheckpointManifest::file(const std::string& name) const {
  const auto found = std::find_if(files.begin(), files.end(),
                                  [&](const CheckpointFile& file) { return file.name == name; });
  OPENMOE_CHECK(found != files.end(), "no file ", name);
  return *found;
}

const CheckpointTensor* CheckpointManifest::find(const std::string& name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const CheckpointTensor& t) { return t.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string to_text(const CheckpointPart& part) {
  return Json{{"file", to_json(part.file)}, {"tensors", list_of(part.tensors)}}.dump();
}

void add_part(CheckpointManifest& manifest, const std::string& part_text) {
  const Json json = Json::parse(part_text);
  manifest.files.push_back(file_from(json.at("file")));
  for (const Json& item : json.at("tensors")) {
    const CheckpointTensor tensor = tensor_from(item);
    const auto known =
        std::find_if(manifest.tensors.begin(), manifest.tensors.end(),
                     [&](const CheckpointTensor& t) { return t.name == tensor.name; });
    if (known == manifest.tensors.end())
      manifest.tensors.push_back(tensor);
    else
      known->slices.insert(known->slices.end(), tensor.slices.begin(), tensor.slices.end());
  }
}

std::string to_text(const CheckpointManifest& manifest) {
  const CheckpointMeta& meta = manifest.meta;
  Json json = {{"format", kFormat},
               {"step", meta.step},
               {"positions", meta.positions},
               {"data_fingerprint", meta.data_fingerprint},
               {"tokenizer_sha256", meta.tokenizer_sha256},
               {"grid", {{"dp", manifest.dp}, {"ep", manifest.ep}, {"tp", manifest.tp}}},
               {"files", list_of(manifest.files)},
               {"tensors", list_of(manifest.tensors)},
               {"recipe", Json::parse(meta.recipe_json)}};
  if (!meta.trainer_state.empty()) json["trainer"] = Json::parse(meta.trainer_state);
  Sha256 hash;
  hash.update(json.dump());
  json["sha256"] = hash.finish();
  return json.dump(1) + "\n";
}

CheckpointManifest parse_manifest(const std::string& text, const std::string& origin) {
  const auto damaged = [&](const std::string& what) {
    return UserError(
        origin + ": " + what +
        "; the checkpoint is damaged: remove its folder to go on from the one before it");
  };
  try {
    Json json = Json::parse(text);
    if (json.at("format") != kFormat)
      throw UserError(concat(origin, ": its format is ", json.at("format").dump(),
                             ", this program reads format ", kFormat));
    const std::string expected = json.at("sha256").get<std::string>();
    json.erase("sha256");
    Sha256 hash;
    hash.update(json.dump());
    if (hash.finish() != expected) throw damaged("its content does not match its own SHA-256");
    CheckpointManifest manifest = manifest_from(json);
    for (const CheckpointTensor& tensor : manifest.tensors)
      if (!is_covered(manifest, tensor))
        throw damaged("the slices of " + tensor.name + " do not make up the whole tensor");
    return manifest;
  } catch (const Json::exception& error) {
    throw damaged(std::string("it is not a manifest (") + error.what() + ")");
  }
}

}  // namespace openmoe
