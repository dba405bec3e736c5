#include "apps/checkpoint_manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "data/hash.h"

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

// Format 1 knew slices of whole rows only.
constexpr std::int64_t kFormat = 2;

Json to_json(const CheckpointFile& file) {
  return {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}};
}

Json to_json(const Shape& shape) {
  Json sizes = Json::array();
  for (int axis = 0; axis < shape.rank; ++axis) sizes.push_back(shape[axis]);
  return sizes;
}

Json to_json(const CheckpointTensor& tensor) {
  Json slices = Json::array();
  for (const auto& [file, piece] : tensor.slices)
    slices.push_back({{"file", file},
                      {"begin", to_json(piece.global_begin)},
                      {"size", to_json(piece.size)},
                      {"from", to_json(piece.local_begin)}});
  return {{"name", tensor.name},
          {"dtype", tensor.dtype},
          {"shape", to_json(tensor.shape)},
          {"slices", slices}};
}

CheckpointFile file_from(const Json& json) {
  return {json.at("name").get<std::string>(), json.at("bytes").get<std::int64_t>(),
          json.at("sha256").get<std::string>()};
}

Shape shape_from(const Json& json) {
  Shape shape;
  for (const Json& size : json) {
    OPENMOE_CHECK(shape.rank < Shape::kMaxRank, json.dump());
    shape.sizes[static_cast<std::size_t>(shape.rank++)] = size.get<std::int64_t>();
  }
  return shape;
}

// A slice of format 1: rows [begin, end), a dataset of their own.
Piece whole_rows(const Json& json, Shape shape) {
  const std::int64_t begin = json.at("begin").get<std::int64_t>();
  shape.sizes[0] = json.at("end").get<std::int64_t>() - begin;
  return rows_piece(begin, shape);
}

CheckpointTensor tensor_from(const Json& json) {
  CheckpointTensor tensor;
  tensor.name = json.at("name").get<std::string>();
  tensor.dtype = json.at("dtype").get<std::string>();
  tensor.shape = shape_from(json.at("shape"));
  for (const Json& slice : json.at("slices"))
    tensor.slices.push_back({slice.at("file").get<std::string>(),
                             slice.contains("size")
                                 ? Piece{shape_from(slice.at("begin")),
                                         shape_from(slice.at("from")), shape_from(slice.at("size"))}
                                 : whole_rows(slice, tensor.shape)});
  return tensor;
}

template <typename Item>
Json list_of(const std::vector<Item>& items) {
  Json list = Json::array();
  for (const Item& item : items) list.push_back(to_json(item));
  return list;
}

bool is_within(const Piece& piece, const Shape& shape) {
  const int rank = shape.rank;
  if (piece.size.rank != rank || piece.global_begin.rank != rank || piece.local_begin.rank != rank)
    return false;
  for (int axis = 0; axis < rank; ++axis)
    if (piece.size[axis] < 0 || piece.global_begin[axis] < 0 || piece.local_begin[axis] < 0 ||
        piece.global_begin[axis] + piece.size[axis] > shape[axis])
      return false;
  return true;
}

bool overlap(const Piece& a, const Piece& b) {
  for (int axis = 0; axis < a.size.rank; ++axis)
    if (a.global_begin[axis] + a.size[axis] <= b.global_begin[axis] ||
        b.global_begin[axis] + b.size[axis] <= a.global_begin[axis])
      return false;
  return a.size.num_elements() > 0 && b.size.num_elements() > 0;
}

// Slices that leave no element out, none twice, and name files of the manifest.
bool is_covered(const CheckpointManifest& manifest, const CheckpointTensor& tensor) {
  std::int64_t covered = 0;
  for (std::size_t i = 0; i < tensor.slices.size(); ++i) {
    const auto& [name, piece] = tensor.slices[i];
    const auto is_named = [&name = name](const CheckpointFile& file) { return file.name == name; };
    if (!is_within(piece, tensor.shape) ||
        std::none_of(manifest.files.begin(), manifest.files.end(), is_named))
      return false;
    for (std::size_t j = 0; j < i; ++j)
      if (overlap(piece, tensor.slices[j].piece)) return false;
    covered += piece.size.num_elements();
  }
  return tensor.shape.rank > 0 && covered == tensor.shape.num_elements();
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
    if (json.at("format") != kFormat && json.at("format") != 1)
      throw UserError(concat(origin, ": its format is ", json.at("format").dump(),
                             ", this program reads formats 1 and ", kFormat));
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
