// Checkpoint -> Hugging Face layout.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

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

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSlabBytes = 256 << 20;

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// What an import left for a later export, "" when nothing: beside the checkpoints of the run
// folder.
std::string companions_of(const std::string& checkpoint) {
  const fs::path run = fs::absolute(checkpoint).lexically_normal().parent_path().parent_path();
  const fs::path folder = run / kCompanionFolder;
  std::error_code ignored;
  return fs::is_directory(folder, ignored) ? folder.string() : "";
}

const char* torch_dtype(WeightType type) {
  if (type == WeightType::f32) return "float32";
  return type == WeightType::f16 ? "float16" : "bfloat16";
}

// Copies a parameter of the checkpoint, or one expert of it, to the writer.
class Exporter {
 public:
  Exporter(const std::string& checkpoint, const CheckpointManifest& manifest, const Recipe& recipe,
           HfWeightsWriter& writer)
      : checkpoint_(checkpoint),
        manifest_(manifest),
        recipe_(recipe),
        reader_(checkpoint, manifest),
        writer_(writer) {}

  void copy(const HfTensor& tensor) {
    const Param& param = *tensor.param;
    const CheckpointTensor& source = find(param);
    const Shape& shape = param.global_shape;
    if (tensor.expert >= 0) {
      const Tensor slab = read(source, tensor.expert, 1);
      transposed_.resize(slab_.size());
      transpose(transposed_.data(), slab_.data(), shape[1], shape[2]);
      writer_.append(transposed_.data(), slab.num_elements());
      return;
    }
    const std::int64_t row_bytes =
        shape.num_elements() / std::max<std::int64_t>(1, shape[0]) * size_of(DType::f32);
    const std::int64_t most = std::max<std::int64_t>(1, kSlabBytes / row_bytes);
    for (std::int64_t begin = 0; begin < shape[0]; begin += most) {
      const Tensor slab = read(source, begin, std::min(most, shape[0] - begin));
      fold_attention_scale(param);
      writer_.append(slab_.data(), slab.num_elements());
    }
  }

 private:
  const CheckpointTensor& find(const Param& param) const {
    const CheckpointTensor* found = manifest_.find("value/" + param.name);
    if (found == nullptr || !(found->shape == param.global_shape))
      throw UserError(checkpoint_ + ": its tensor " + param.name + " is " +
                      (found == nullptr ? "missing" : found->shape.to_string()) +
                      ", its own recipe says " + param.global_shape.to_string() +
                      "; the checkpoint is damaged");
    return *found;
  }

  Tensor read(const CheckpointTensor& source, std::int64_t begin, std::int64_t rows) {
    Shape shape = source.shape;
    shape.sizes[0] = rows;
    slab_.resize(static_cast<std::size_t>(shape.num_elements()));
    const Tensor slab = host_view(slab_.data(), shape);
    reader_.read(source, begin, slab);
    return slab;
  }

  // The port computes plain q.k; where ours divides by sqrt(Dh) the query weights take the factor.
  void fold_attention_scale(const Param& param) {
    if (recipe_.model.attention_scale != AttentionScale::rsqrt ||
        !param.name.ends_with("q_proj.weight"))
      return;
    const auto scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(recipe_.model.head_dim)));
    for (float& value : slab_) value *= scale;
  }

  const std::string& checkpoint_;
  const CheckpointManifest& manifest_;
  const Recipe& recipe_;
  CheckpointReader reader_;
  HfWeightsWriter& writer_;
  std::vector<float> slab_, transposed_;
};

int write_companions(const ExportOptions& options, const std::string& kept, const fs::path& to) {
  if (options.tokenizer.empty()) return kept.empty() ? 0 : copy_companions(kept, to);
  const fs::path tokenizer = options.tokenizer;
  std::error_code error;
  if (fs::is_directory(tokenizer, error)) {
    const int copied = copy_companions(tokenizer, to);
    if (copied == 0)
      throw UserError("--tokenizer " + options.tokenizer + ": holds no tokenizer files");
    return copied;
  }
  if (!is_file(tokenizer))
    throw UserError("--tokenizer " + options.tokenizer + ": there is no such file");
  fs::copy_file(tokenizer, to / tokenizer.filename(), error);
  if (error) throw RuntimeFault("copying " + options.tokenizer + ": " + error.message());
  return 1;
}

}  // namespace

bool is_checkpoint_or_run(const std::string& folder) {
  return !find_checkpoint(folder).empty();
}

void export_hf(const ExportOptions& options) {
  const std::string checkpoint = require_checkpoint(options.from);
  const CheckpointManifest manifest = read_manifest(checkpoint);
  const Recipe recipe = parse_recipe(manifest.meta.recipe_json, checkpoint + ": its recipe");
  if (const std::string problem = not_in_hf_config(recipe); !problem.empty())
    throw UserError(checkpoint + ": cannot be said in the Hugging Face layout: " + problem);

  NewFolder folder(options.to);
  const ParamTable table(recipe.model, recipe.optimizer);
  const std::vector<HfTensor> tensors = hf_tensors(table, options.layout);
  std::vector<WeightInfo> weights;
  weights.reserve(tensors.size());
  for (const HfTensor& tensor : tensors)
    weights.push_back({tensor.name, options.type, "", tensor.shape});
  HfWeightsWriter writer(folder.path(), weights, options.max_file_bytes);
  Exporter exporter(checkpoint, manifest, recipe, writer);
  for (const HfTensor& tensor : tensors) exporter.copy(tensor);
  writer.close();

  const std::string kept = companions_of(checkpoint);
  // A run that was trained here keeps a tokenizer but no config.json.
  const std::string base = kept.empty() || !is_file(fs::path(kept) / "config.json")
                               ? ""
                               : read_text_file(kept + "/config.json", "config.json");
  write_and_sync(folder.path() / "config.json",
                 hf_config_from_recipe(recipe, base, torch_dtype(options.type)));
  const int copied = write_companions(options, kept, folder.path());
  folder.publish();
  std::printf("exported %lld parameters of %s in %zu tensors (%s layout, %s) to %lld files in %s\n",
              static_cast<long long>(table.num_parameters()), checkpoint.c_str(), tensors.size(),
              options.layout == HfLayout::split ? "split" : "stacked", name_of(options.type),
              static_cast<long long>(writer.num_files()), options.to.c_str());
  if (copied == 0)
    std::printf("no tokenizer went along: name its file or folder with --tokenizer\n");
}

}  // namespace openmoe
