// Small data folders for tests, and the sample corpus.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/config/mixture.h"
#include "core/config/recipe.h"
#include "data/prepare.h"
#include "test/support/scratch.h"

namespace openmoe::test {

inline std::string sample(const std::string& file) {
  return source_dir() + "/data/sample/" + file;
}

inline PrepareOptions prepare_options(const std::string& out,
                                      const std::vector<PrepareInput>& inputs) {
  PrepareOptions options;
  options.tokenizer = sample("unigram-8000.model");
  options.inputs = inputs;
  options.out = out;
  options.validation_fraction = 0.2;
  options.num_threads = 2;
  return options;
}

// Sources of the sample in one data folder, made once per test executable.
class SampleData {
 public:
  SampleData() {
    std::vector<PrepareInput> inputs;
    for (const char* name : kSources) inputs.push_back({"", sample(std::string(name) + ".jsonl")});
    prepare(prepare_options(scratch_.path("data"), inputs), {});
  }
  std::string folder() const { return scratch_.path("data"); }
  static const SampleData& get() {
    static const SampleData instance;
    return instance;
  }
  static constexpr const char* kSources[] = {"c4", "github", "stackexchange"};

 private:
  Scratch scratch_;
};

inline Mixture mixture_of(const std::vector<std::pair<std::string, double>>& weights) {
  Mixture mixture;
  mixture.name = "test";
  for (const auto& [name, weight] : weights) {
    mixture.sources.push_back({name, weight});
    mixture.weight_sum += weight;
  }
  return mixture;
}

inline Recipe recipe_of(std::int64_t length, std::int64_t rows,
                        const std::vector<PhaseConfig>& phases) {
  Recipe recipe;
  recipe.model.vocab_size = 8192;
  recipe.data.sequence_length = length;
  recipe.data.batch_rows = rows;
  recipe.data.phases = phases;
  return recipe;
}

inline PhaseConfig phase(ObjectiveKind objective, Packing packing, std::int64_t until_step = 0) {
  PhaseConfig config;
  config.objective = objective;
  config.packing = packing;
  config.mixture = "test";
  config.until_step = until_step;
  return config;
}

}  // namespace openmoe::test
