// DecodeWeights: the parameters of a model as decoding reads them: matrices packed
// (packed_matrix.h) in f32 or bf16, experts turned to (out, in), norms and routers in f32. Filled
// parameter by parameter, or slab by slab, so that a model is never held twice.
//
// A rank holds the experts of its ep_rank, and of every matrix the rows of its tp_rank (split.h):
// all columns, so that it computes whole dot products. Norms and routers are on every rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/recipe.h"
#include "core/infer/packed_matrix.h"
#include "core/infer/split.h"
#include "core/param_table.h"

namespace openmoe::infer {

// Shapes are those of one rank that holds all; of several, rows are this rank's.
struct FfnWeights {
  std::vector<float> norm;  // (D); empty where the FFN reads what the sublayer before it read
  PackedMatrix gate;        // (Fg, D); of gated SwiGLU both halves have this rank's columns of h
  PackedMatrix up;          // (F, D)
  PackedMatrix down;        // (D, F)
};

struct LayerWeights {
  bool is_moe = false;
  std::vector<float> attention_norm;  // (D)
  PackedMatrix q, k, v;               // (A, D)
  PackedMatrix o;                     // (D, A)
  std::vector<float> moe_norm;        // (D), MoE layers only, and so are the next two; empty in
                                      // a parallel block
  PackedMatrix router;                // (E, D), always f32
  std::vector<FfnWeights> experts;    // (El), without norms
  FfnWeights ffn;
};

// Indices [begin, end) of axis 0 of a parameter; of an expert stack, whose axis 0 are the experts,
// columns [first_column, last_column) of each. Elsewhere columns are whole.
struct ParamBlock {
  std::int64_t begin = 0, end = 0;
  std::int64_t first_column = 0, last_column = 0;

  static ParamBlock rows(const Param& param, std::int64_t begin, std::int64_t end) {
    return {begin, end, 0, param.global_shape[param.global_shape.rank - 1]};
  }
  std::int64_t width() const { return last_column - first_column; }
};

class DecodeWeights {
 public:
  // This rank's part of the model, see above. ep divides the experts, tp is at most
  // TensorSplits::most_ranks. `dtype` of the matrices: f32 or bf16.
  DecodeWeights(const ModelConfig& model, DType dtype, std::int64_t ep, std::int64_t ep_rank,
                std::int64_t tp = 1, std::int64_t tp_rank = 0);

  // What this rank holds of `param`.
  std::vector<ParamBlock> blocks(const Param& param) const;
  // Values of a block of `param` from row-major f32. What another rank holds is passed over.
  void set(const Param& param, const ParamBlock& block, const float* values);
  // All parameters of a table in host memory.
  void set_all(const ParamTable& table);

  const ModelConfig& model() const { return model_; }
  DType dtype() const { return dtype_; }
  const TensorSplits& splits() const { return splits_; }
  std::int64_t first_expert() const { return first_expert_; }
  std::int64_t num_local_experts() const { return num_local_experts_; }
  const PackedMatrix& embedding() const { return embedding_; }  // (V, D)
  const PackedMatrix& head() const { return model_.tied_embedding ? embedding_ : head_; }
  const std::vector<float>& final_norm() const { return final_norm_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }

  std::int64_t bytes() const;  // of all matrices of this rank
  // Bytes that decoding one token must read here: every matrix once, of the experts two per MoE
  // layer, of the embedding one row. Without the cache of keys and values.
  std::int64_t bytes_per_token() const;

 private:
  // Rows [begin, end) of a whole matrix, and where they are among this rank's.
  struct RowPiece {
    std::int64_t begin, end, local;
  };
  std::vector<RowPiece> row_pieces(const Param& param) const;
  FfnWeights make_ffn() const;
  void set_experts(const Param& param, const ParamBlock& block, const float* values);
  std::vector<float>* find_vector(const std::string& name);
  PackedMatrix* find_matrix(const std::string& name);

  ModelConfig model_;
  DType dtype_;
  TensorSplits splits_;
  std::int64_t first_expert_, num_local_experts_;
  PackedMatrix embedding_, head_;
  std::vector<float> final_norm_;
  std::vector<LayerWeights> layers_;
};

}  // namespace openmoe::infer
