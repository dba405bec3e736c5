// Checkpoints to and from the Hugging Face layout, tensor by tensor: memory holds one slab (an
// expert's matrix, or 256 MiB of another tensor), never a whole model. On one rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/hf_layout.h"
#include "data/weight_file.h"

namespace openmoe {

struct ImportOptions {
  std::string from;                    // Hugging Face folder
  std::string to;                      // run folder to make
  std::vector<std::string> overrides;  // of the recipe, as after --set
};
// Makes a run folder: recipe.json, checkpoints/step-00000000 with the parameters and no optimizer
// state, and huggingface/ with the config, tokenizer and modelling files. Throws UserError naming
// file and tensor on anything missing, extra or of another shape; nothing is left behind then.
void import_hf(const ImportOptions& options);

struct ExportOptions {
  std::string from;  // run folder (its latest checkpoint) or checkpoint folder
  std::string to;    // Hugging Face folder to make
  HfLayout layout = HfLayout::stacked;
  WeightType type = WeightType::f32;
  std::int64_t max_file_bytes = 10'000'000'000;
  std::string tokenizer;  // file, or folder whose companion files go along; "": those of an earlier
                          // import, if any
};
// Makes a Hugging Face folder. Throws UserError when the port cannot express the model, or a value
// is too large for the type.
void export_hf(const ExportOptions& options);

// True when the folder is ours: a run folder with a checkpoint, or a checkpoint.
bool is_checkpoint_or_run(const std::string& folder);

}  // namespace openmoe
