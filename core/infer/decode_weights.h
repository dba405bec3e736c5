// DecodeWeights: the parameters of a model as decoding reads them: matrices packed
// (packed_matrix.h) in f32 or bf16, experts turned to (out, in), norms and routers in f32. Filled
// parameter by parameter, or slab by slab, so that a model is never held twice.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/recipe.h"
#include "core/infer/packed_matrix.h"
#include "core/param_table.h"

namespace openmoe::infer {

struct FfnWeights {
  std::vector<float> norm;  // (D); empty in the parallel residual FFN
  PackedMatrix gate;        // (Fg, D)
  PackedMatrix up;          // (F, D)
  PackedMatrix down;        // (D, F)
};

struct LayerWeights {
  bool is_moe = false;
  std::vector<float> attention_norm;  // (D)
  PackedMatrix q, k, v;               // (A, D)
  PackedMatrix o;                     // (D, A)
  std::vector<float> moe_norm;        // (D), MoE layers only, and so are the next two
  PackedMatrix router;                // (E, D), always f32
  std::vector<FfnWeights> experts;    // (El), without norms
  FfnWeights ffn;
};

class DecodeWeights {
 public:
  // All of the model, with the experts of ep_rank out of ep. `dtype` of the matrices: f32 or bf16.
  DecodeWeights(const ModelConfig& model, DType dtype, std::int64_t ep, std::int64_t ep_rank);

  // Values of `param` from row-major f32: rows [begin, begin + rows) of axis 0. Of an expert stack
  // one row is one expert's matrix; experts of other ranks are passed over.
  void set(const Param& param, std::int64_t begin, std::int64_t rows, const float* values);
  // All parameters of a table in host memory.
  void set_all(const ParamTable& table);

  const ModelConfig& model() const { return model_; }
  DType dtype() const { return dtype_; }
  std::int64_t first_expert() const { return first_expert_; }
  std::int64_t num_local_experts() const { return num_local_experts_; }
  const PackedMatrix& embedding() const { return embedding_; }  // (V, D)
  const PackedMatrix& head() const { return model_.tied_embedding ? embedding_ : head_; }
  const std::vector<float>& final_norm() const { return final_norm_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }

  std::int64_t bytes() const;  // of all matrices
  // Bytes that decoding one token must read: every matrix once, of the experts two per MoE layer,
  // of the embedding one row. Without the cache of keys and values.
  std::int64_t bytes_per_token() const;

 private:
  void set_expert(LayerWeights& layer, const std::string& name, std::int64_t expert,
                  const float* values);
  std::vector<float>* find_vector(const std::string& name);
  PackedMatrix* find_matrix(const std::string& name);

  ModelConfig model_;
  DType dtype_;
  std::int64_t first_expert_, num_local_experts_;
  PackedMatrix embedding_, head_;
  std::vector<float> final_norm_;
  std::vector<LayerWeights> layers_;
};

}  // namespace openmoe::infer
