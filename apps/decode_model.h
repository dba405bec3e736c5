// DecodeModel: a checkpoint opened for generation and scoring, on every rank: weights, tokenizer,
// decoder. Shared by generate, evaluate and serve.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/config/recipe.h"
#include "core/infer/generator.h"
#include "data/tokenizer.h"
#include "parallel/process_grid.h"

namespace openmoe {

struct TokenizerOptions {
  std::string file;                 // SentencePiece model; "": the one kept with the run
  std::int64_t num_sentinels = -1;  // -1: as the run says
};
// --tokenizer and --sentinels, spelled alike in every subcommand that opens a run.
void add_tokenizer_options(CLI::App& command, TokenizerOptions& options);

// The tokenizer that the options name, or the one kept with the run. Throws UserError when there is
// none or it does not fit the model.
std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerOptions& options,
                                          const std::string& checkpoint, const Recipe& recipe);

struct DecodeModelOptions {
  std::string folder;         // run or checkpoint
  std::string dtype = "f32";  // of the weights in memory: f32 or bf16
  TokenizerOptions tokenizer;
  std::string capacity = "dropless";
  std::int64_t max_length = 0;  // positions; 0: data.sequence_length of the recipe
  std::int64_t batch = 8;       // sequences at once
  std::int64_t ep = 0, tp = 0;  // ranks that share the experts, and each matrix; 0: see decode_grid
};

// The options above, spelled alike in every subcommand that decodes.
void add_decode_options(CLI::App& command, DecodeModelOptions& options);

class DecodeModel {
 public:
  // Experts are spread over the ep ranks of `grid`, rows of matrices over its tp ranks (dp is 1);
  // each rank reads what it holds.
  // Throws UserError on every rank when folder, tokenizer and model do not fit each other.
  // Collective.
  DecodeModel(const DecodeModelOptions& options, ProcessGrid& grid);

  const Recipe& recipe() const { return recipe_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  std::int64_t num_ids() const;  // that may be generated
  const infer::DecodeWeights& weights() const { return *weights_; }
  infer::Decoder& decoder() { return *decoder_; }
  infer::Generator& generator() { return *generator_; }
  const std::string& checkpoint() const { return checkpoint_; }

 private:
  void load_weights();

  std::string checkpoint_;
  Recipe recipe_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<infer::DecodeWeights> weights_;
  std::unique_ptr<infer::Decoder> decoder_;
  std::unique_ptr<infer::Generator> generator_;
};

// ep x tp = num_ranks for decoding a model: as asked for; where nothing is, ep as large as ranks
// and experts have in common, and tp the rest. Throws UserError, which names `place`, when ep does
// not divide the experts or tp leaves a rank without a head or rows of a matrix.
struct DecodeGrid {
  std::int64_t ep = 1, tp = 1;
};
DecodeGrid decode_grid(const DecodeModelOptions& options, const ModelConfig& model,
                       std::int64_t num_ranks, const std::string& place);

// That grid, of the model in options.folder. Throws UserError on every rank. Collective.
std::unique_ptr<ProcessGrid> make_decode_grid(Communicator& world,
                                              const DecodeModelOptions& options);

// Copies the tokenizer of a training run to where DecodeModel and `convert` look for it. On one
// rank; throws UserError.
void keep_tokenizer(const Tokenizer& tokenizer, const std::string& run_folder);

// A decoder's options from those above. Throws UserError.
infer::DecodeOptions decode_options(const DecodeModelOptions& options, const Recipe& recipe);

}  // namespace openmoe
