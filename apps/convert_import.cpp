// Hugging Face layout -> run folder.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "apps/checkpoint_manifest.h"
#include "apps/checkpoint_reader.h"
#include "apps/convert.h"
#include "apps/convert_files.h"
#include "apps/hf_config.h"
#include "apps/hf_weights.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/json_document.h"
#include "core/config/recipe_io.h"
#include "data/durable_files.h"
#include "data/h5_file.h"
#include "data/hash.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSlabBytes = 256 << 20;
constexpr std::int64_t kMostSlabs =
    64;  // of one parameter; each lies in a file of its own, and all are open at once
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "model.embed_tokens.weight";

// Columns of a parameter as a matrix, and rows of that matrix per index of axis 0.
std::int64_t columns_of(const Param& param) {
  return param.global_shape[param.global_shape.rank - 1];
}
std::int64_t rows_per_index(const Param& param) {
  return param.global_shape.rank == 3 ? param.global_shape[1] : 1;
}

// A checkpoint written slab by slab: slab i of every dense parameter is in dense-I.h5, slab i of
// every expert stack in experts-I.h5, so that a rank that holds some experts reads only their
// files.
class SlabWriter {
 public:
  explicit SlabWriter(const fs::path& folder) : folder_(folder) {}

  // Rows of axis 0 of each slab.
  static std::int64_t slab_rows(const Param& param) {
    const Shape& shape = param.global_shape;
    if (shape.rank == 1) return shape[0];
    const std::int64_t row_bytes = rows_per_index(param) * columns_of(param) * size_of(DType::f32);
    const std::int64_t fitting = param.sharding == Sharding::expert ? 1 : kSlabBytes / row_bytes;
    return std::max(
        {std::int64_t{1}, std::min(fitting, shape[0]), (shape[0] + kMostSlabs - 1) / kMostSlabs});
  }

  void write(const Param& param, std::int64_t begin, Tensor slab) {
    char name[32];
    std::snprintf(name, sizeof name, "%s-%05lld.h5",
                  param.sharding == Sharding::expert ? "experts" : "dense",
                  static_cast<long long>(begin / slab_rows(param)));
    auto file = files_.find(name);
    if (file == files_.end())
      file = files_.emplace(name, H5File(folder_ / name, H5File::Mode::create)).first;
    const std::string tensor = "value/" + param.name;
    file->second.write(tensor, slab);
    if (begin == 0)
      manifest_.tensors.push_back({tensor, name_of(slab.dtype), param.global_shape, {}});
    manifest_.tensors.back().slices.push_back({name, rows_piece(begin, slab.shape)});
  }

  void finish(const CheckpointMeta& meta) {
    for (auto& [name, file] : files_) {
      file.close();
      const std::string path = folder_ / name;
      sync_path(path);
      manifest_.files.push_back(
          {name, static_cast<std::int64_t>(fs::file_size(path)), sha256_file(path)});
    }
    manifest_.meta = meta;
    write_and_sync(folder_ / kCheckpointManifest, to_text(manifest_));
    sync_path(folder_);
  }

 private:
  fs::path folder_;
  std::map<std::string, H5File> files_;
  CheckpointManifest manifest_;
};

// The recipe of config.json and --set, also written to `path`.
Recipe import_recipe(const ImportOptions& options, const fs::path& path) {
  const std::string origin = fs::path(options.from) / "config.json";
  auto json =
      Json::parse(recipe_text_from_hf_config(read_text_file(origin, "config.json"), origin));
  json["name"] = fs::absolute(options.to).lexically_normal().filename().string();
  json["description"] = "Made from the config.json of " + options.from +
                        " by openmoe convert. The data, optimizer and run sections are defaults.";
  Recipe recipe = parse_recipe(json.dump(), origin);
  if (!options.overrides.empty()) {
    write_and_sync(path, json.dump(2));
    recipe = load_recipe(path, options.overrides);
  }
  write_and_sync(path, to_json(recipe));
  return recipe;
}

HfLayout layout_of(const HfWeights& weights) {
  const auto names = weights.names();
  const bool is_split = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name.ends_with("mlp.gate.weight") || name.find(".mlp.experts.0.") != std::string::npos;
  });
  return is_split ? HfLayout::split : HfLayout::stacked;
}

// One line per problem, at most a few of each kind.
class Problems {
 public:
  void add(const std::string& line) {
    constexpr std::size_t kMost = 12;
    if (++count_ <= kMost) text_ += "\n  " + line;
  }
  void throw_if_any(const std::string& origin) const {
    if (count_ == 0) return;
    throw UserError(concat(origin, ": its tensors are not those of the model in config.json, ",
                           count_,
                           count_ == 1 ? " problem:" : " problems, the first of them:", text_));
  }

 private:
  std::size_t count_ = 0;
  std::string text_;
};

void check_tensors(const HfWeights& weights, const std::vector<HfTensor>& tensors, bool is_tied) {
  Problems problems;
  std::map<std::string, const HfTensor*> expected;
  for (const HfTensor& tensor : tensors) {
    expected[tensor.name] = &tensor;
    const WeightInfo* found = weights.find(tensor.name);
    if (found == nullptr)
      problems.add("tensor " + in_quotes(tensor.name) + " " + shape_to_string(tensor.shape) +
                   " is missing");
    else if (found->shape != tensor.shape)
      problems.add("tensor " + in_quotes(tensor.name) + " is " + shape_to_string(found->shape) +
                   ", expected " + shape_to_string(tensor.shape));
    else if (found->type == WeightType::other)
      problems.add("tensor " + in_quotes(tensor.name) + " holds " + found->type_name +
                   ", allowed: f32, f16, bf16");
  }
  for (const std::string& name : weights.names())
    if (!expected.contains(name) && !(is_tied && name == kHead))
      problems.add("tensor " + in_quotes(name) + " " + shape_to_string(weights.find(name)->shape) +
                   " is not part of the model");
  problems.throw_if_any(weights.origin());
}

// With tied embeddings a file may hold the output matrix a second time; it must be the same one.
void check_tied_head(HfWeights& weights) {
  const WeightInfo* head = weights.find(kHead);
  if (head == nullptr) return;
  if (head->shape != weights.find(kEmbedding)->shape)
    throw UserError(weights.origin() + ": tensor " + in_quotes(kHead) +
                    " has another shape than the embedding that config.json ties it to");
  const std::int64_t columns = head->num_columns();
  const std::int64_t most = std::max<std::int64_t>(1, kSlabBytes / (columns * size_of(DType::f32)));
  std::vector<float> a, b;
  for (std::int64_t row = 0; row < head->num_rows(); row += most) {
    const std::int64_t rows = std::min(most, head->num_rows() - row);
    a.resize(static_cast<std::size_t>(rows * columns));
    b.resize(a.size());
    weights.read_rows(kHead, row, rows, a.data());
    weights.read_rows(kEmbedding, row, rows, b.data());
    if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) != 0)
      throw UserError(
          weights.origin() + ": tensor " + in_quotes(kHead) +
          " differs from the embedding, but config.json says tie_word_embeddings; set it to "
          "false there");
  }
}

// Indices [begin, end) of axis 0 of a parameter. `sources`: its tensors in the folder, one, or one
// per expert.
void read_slab(HfWeights& weights, const std::vector<const HfTensor*>& sources, std::int64_t begin,
               std::int64_t end, std::vector<float>& slab, std::vector<float>& scratch) {
  const Param& param = *sources.front()->param;
  const std::int64_t rows = rows_per_index(param), columns = columns_of(param);
  if (sources.front()->expert < 0) {
    const bool is_vector = param.global_shape.rank == 1;
    weights.read_rows(sources.front()->name, is_vector ? 0 : begin * rows,
                      is_vector ? 1 : (end - begin) * rows, slab.data());
    return;
  }
  scratch.resize(static_cast<std::size_t>(rows * columns));
  for (std::int64_t expert = begin; expert < end; ++expert) {
    weights.read_rows(sources[static_cast<std::size_t>(expert)]->name, 0, columns, scratch.data());
    transpose(slab.data() + (expert - begin) * rows * columns, scratch.data(), columns, rows);
  }
}

void import_parameters(HfWeights& weights, const ParamTable& table,
                       const std::vector<HfTensor>& tensors, SlabWriter& writer) {
  std::map<std::string, std::vector<const HfTensor*>> sources;
  for (const HfTensor& tensor : tensors) sources[tensor.param->name].push_back(&tensor);
  std::vector<float> slab, scratch;
  for (const Param& param : table.params()) {
    const std::int64_t most = SlabWriter::slab_rows(param);
    for (std::int64_t begin = 0; begin < param.global_shape[0]; begin += most) {
      Shape shape = param.global_shape;
      shape.sizes[0] = std::min(most, shape[0] - begin);
      slab.resize(static_cast<std::size_t>(shape.num_elements()));
      read_slab(weights, sources.at(param.name), begin, begin + shape[0], slab, scratch);
      writer.write(param, begin, host_view(slab.data(), shape));
    }
  }
}

}  // namespace

void import_hf(const ImportOptions& options) {
  NewFolder folder(options.to);
  const Recipe recipe = import_recipe(options, folder.path() / "recipe.json");
  HfWeights weights(options.from);
  const ParamTable table(recipe.model, recipe.optimizer);
  const HfLayout layout = layout_of(weights);
  const std::vector<HfTensor> tensors = hf_tensors(table, layout);
  check_tensors(weights, tensors, recipe.model.tied_embedding);
  if (recipe.model.tied_embedding) check_tied_head(weights);

  const fs::path checkpoint = checkpoint_folder(folder.path(), 0),
                 companions = folder.path() / kCompanionFolder;
  fs::create_directories(checkpoint);
  fs::create_directory(companions);
  SlabWriter writer(checkpoint);
  import_parameters(weights, table, tensors, writer);
  writer.finish({.step = 0,
                 .positions = 0,
                 .recipe_json = to_json(recipe),
                 .data_fingerprint = kImportedWeights});
  fs::copy_file(fs::path(options.from) / "config.json", companions / "config.json");
  const int copied = copy_companions(options.from, companions);
  folder.publish();
  std::printf(
      "imported %lld parameters in %zu tensors (%s layout) and %d other files\n"
      "recipe      %s/recipe.json\ncheckpoint  %s\n",
      static_cast<long long>(table.num_parameters()), tensors.size(),
      layout == HfLayout::split ? "split" : "stacked", copied, options.to.c_str(),
      checkpoint_folder(options.to, 0).c_str());
}

}  // namespace openmoe
