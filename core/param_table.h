// ParamTable: the ordered list of every trainable tensor of a model. It drives initialisation,
// gradients, the optimizer, reduction over ranks, checkpoints, export and tests. Names and shapes
// are those of the Hugging Face port of OpenMoE: linear weights are (out, in), expert stacks (E,
// in, out).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/config/recipe.h"
#include "core/ops.h"
#include "core/placement.h"
#include "core/tensor.h"

namespace openmoe {

// Where gradients live.
enum class GradientMemory {
  none,   // no training
  whole,  // each has its own place, contiguous by Sharding, so that each kind can be reduced as one
          // stretch
  one     // all share one place, in turns; only a tied embedding, which collects its gradient from
          // the first sublayer of the backward to the last, has its own
};

enum class InitKind { ones, normal, truncated_normal };

// How a parameter is spread over the ranks of a process grid.
enum class Sharding {
  replicated,  // whole on every rank
  tensor,      // each rank of a tensor group has its slice
  expert       // each rank of an expert group has its experts; of each, its tensor slice
};
// In the order in which whole gradients lie. The embedding's is of the first kind that there is.
inline constexpr std::array kShardings = {Sharding::tensor, Sharding::replicated, Sharding::expert};

// Which ranks of a grid a table is for.
struct ParamShare {
  std::int64_t ep = 1, ep_rank = 0;
  std::int64_t tp = 1, tp_rank = 0;
  std::int64_t dp = 1, dp_rank = 0;
  // The ranks that hold the same parameter divide its optimizer state, and its f32 values where
  // nothing but the update reads them.
  bool divides_update = false;

  // How many ranks hold the same parameters of this kind, and which of them this one is; as
  // ProcessGrid::holders.
  struct Holders {
    std::int64_t size = 1, rank = 0;
  };
  Holders holders(Sharding sharding) const;
};

// The indices along one axis that a rank of a tensor group holds, in stretches one after the other:
// the gate of a gated SwiGLU, [a | b], is split within each half.
struct TensorSlice {
  struct Range {
    std::int64_t begin = 0, end = 0;
  };
  int axis = -1;  // of the parameter's shape; -1: all of it is here
  int num_ranges = 0;
  std::array<Range, 2> ranges{};
};

// What is one rank's of a parameter that several hold: indices [begin, end) of one axis of the
// local slice, a contiguous stretch of it.
struct OwnPart {
  int axis = -1;  // -1: not divided
  std::int64_t begin = 0, end = 0;
};

struct Param {
  std::string name;
  Shape global_shape;
  Shape local_shape;             // smaller along axis 0 of expert stacks, and a tensor slice's axis
  std::int64_t local_begin = 0;  // first index of axis 0 held here, of expert stacks
  TensorSlice tensor_slice;
  Sharding sharding = Sharding::replicated;
  InitKind init = InitKind::normal;
  double init_std = 0.0;
  bool factored = false;  // Adafactor statistics: row and column means, or one value per element

  bool in_products =
      false;  // an operand of products in the compute type (not norms, not the router)

  OwnPart own;                    // the optimizer's statistics are of this part
  bool is_value_divided = false;  // so is the value; products read the operand, which is whole

  Tensor value;     // f32
  Tensor operand;   // what products read: value itself, or its copy rounded to bf16
  Tensor grad;      // f32
  Tensor stat_row;  // factored: (stack, R), R the second-to-last dimension; else the full second
                    // moment
  Tensor stat_col;  // factored: (stack, C)

  std::int64_t stack() const { return local_shape.rank == 3 ? local_shape[0] : 1; }
  // Experts [begin, end) of the local slice, sharing its memory.
  Param slice(std::int64_t begin, std::int64_t end) const;
  // The value's place in the operand if that is a rounded copy, else an empty tensor.
  Tensor rounded() const {
    if (operand.dtype == value.dtype) return {};
    return is_value_divided ? own_of(operand) : operand;
  }
  // Makes the rounded copy, if there is one, follow the value.
  void round_operand(Ops& ops) {
    if (const Tensor copy = rounded()) ops.convert(copy, value);
  }
  // The own part of a tensor of the local shape, sharing its memory; all of it where the parameter
  // is not divided.
  Tensor own_of(const Tensor& whole) const;
  // The local slice as (stack, R, C), or (1, 1, n) for vectors.
  Shape as_matrices() const { return matrices_of(local_shape); }
  static Shape matrices_of(const Shape& shape);
  // Of value, stat_row or stat_col, as far as it is here.
  Placement placement(Tensor Param::*member) const;
  // The same if it were not divided.
  Placement whole_placement(Tensor Param::*member) const;
};

class ParamTable {
 public:
  // All parameters of the model, as far as they are this rank's. ep divides num_experts; tp divides
  // num_heads and ffn_dim.
  ParamTable(const ModelConfig& model, const OptimizerConfig& optimizer,
             const ParamShare& share = {});

  // Values, with rounded copies where `compute` is bf16; gradients and optimizer state unless
  // `gradients` is none. Then values that have a rounded copy and are not read besides are divided
  // as the share says.
  void allocate(Arena& arena, GradientMemory gradients, ComputeType compute = ComputeType::f32);
  // Fills values and rounded copies from (seed, name, global element index): the same on every
  // grid.
  void initialize(Ops& ops, std::uint64_t seed);
  // Makes the rounded copies follow the values. Whoever writes values calls it before the next use
  // of the model, and gather_operands() (parallel/sharded_update.h) where values are divided:
  // initialize() and Adafactor do.
  void round_operands(Ops& ops);
  // Sets all gradients to zero.
  void zero_gradients(Ops& ops) { ops.zero(all_grads_); }

  std::vector<Param>& params() { return params_; }
  const std::vector<Param>& params() const { return params_; }
  Param& find(const std::string& name);  // programmer error when absent
  bool contains(const std::string& name) const;
  const ParamShare& share() const { return share_; }
  // (n) f32 over all parameters of a kind, 64-byte gaps are zero; n is 0 unless whole
  Tensor grads(Sharding sharding) const { return grads_[static_cast<std::size_t>(sharding)]; }

  std::int64_t num_parameters() const;  // global, of the whole model

 private:
  void allocate_whole_gradients(Arena& arena);
  void allocate_one_gradient(Arena& arena);

  ParamShare share_;
  std::vector<Param> params_;
  std::array<Tensor, kShardings.size()> grads_;
  Tensor all_grads_;  // (n) f32: everything that any Param::grad points into
};

// Counts that `plan` and the start-up log print.
struct ParameterCounts {
  std::int64_t total = 0;
  std::int64_t active = 0;  // used per token without embedding and head: attention, one FFN per
                            // layer, 2 experts per MoE layer
  std::int64_t active_with_embedding = 0;  // active plus embedding and head (once if tied)
};
ParameterCounts count_parameters(const ModelConfig& model);

// Useful training FLOPs per token: 3 x forward; causal attention counted at T/2; kept expert slots
// only where drops are certain (capacity), see README "Results".
double flops_per_token(const Recipe& recipe);

}  // namespace openmoe
