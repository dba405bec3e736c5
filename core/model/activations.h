// Every activation of the network as a named member, with its shape. The network can be read off
// these structs. Tensors of a sublayer are saved from its forward for its backward; Scratch is
// shared by all sublayers. What costs less to compute again than to keep is not saved: normalised
// inputs y, activations h, and expert rows where they need not travel. Recipe key
// parallel.recompute extends that to what costs more:
//   ffn        gate and up of FFNs and experts are scratch
//   attention  q, k, v, o and log_z are scratch; in a parallel block, where rows for the experts
//              lie in scratch meanwhile, one set that all layers share
//   block      of each layer only x_attention, the router's output and the routing are its own; of
//              the rest there is one set that all layers share, and gate and up are scratch
//
// "c" marks the compute type, f32 or bf16 (recipe run.compute_type); all others are f32 or
// integers. On a rank of a tensor group of P, H, A, F, Fg and V are this rank's shares, N' = N/P
// the rows and D' = D/P the columns that are its own (core/tensor_group.h).
#pragma once

#include <vector>

#include "core/moe/token_exchange.h"
#include "core/ops.h"
#include "core/tensor.h"

namespace openmoe {

// x' = x + Wo attention(rope(Wq y), rope(Wk y), Wv y), y = rms_norm(x)
struct AttentionActivations {
  Tensor rstd;     // (N')
  Tensor q, k, v;  // (N, A) c, q and k after rotation; see Scratch where they are computed again
  Tensor o;        // (N, A) c
  Tensor log_z;    // (B, H, T)
};

// x' = x + Wd (act(Wg y, Wu y))
struct FfnActivations {
  Tensor rstd;  // (N'); absent where another sublayer's norm is shared
  Tensor gate;  // (N, Fg) c; becomes its own gradient in the backward
  Tensor up;    // (N, F) c; likewise
};

// x' = x + sum_k gate_k expert_k(y)
struct MoeActivations {
  Tensor rstd;          // (N'); absent in a parallel block
  RouterOutput router;  // see ops.h
  Routing routing;
  Tensor received;  // (M_max, D') c: rows of y in expert order; scratch where all experts are here
  // Become their own gradients in the backward. Where they are computed again: scratch (M_c, ...)
  // of a chunk.
  Tensor expert_gate;  // (M_max, Fg) c
  Tensor expert_up;    // (M_max, F) c
  Tensor returned;     // (S_max, D') c: expert outputs in send order
};

struct LayerActivations {
  AttentionActivations attention;
  MoeActivations moe;  // MoE layers only
  FfnActivations ffn;
  // The residual stream (N', D) as each sublayer reads it; x_moe in MoE layers only, and
  // x_attention alone in a parallel block.
  Tensor x_attention, x_moe, x_ffn;
};

struct Scratch {
  Tensor y;           // (N, D) c: the normalised input of the sublayer at work
  Tensor dx;          // (N', D) gradient of the residual stream
  Tensor dx_operand;  // (N, D) c: dx as products read it; in f32 dx is its own rows
  Tensor dy;          // (N, D); also a product's partial sums before they are added up over ranks
  // The rest share memory: of the groups below, one is alive at a time.
  Tensor h;                // (N, F) c: of the dense FFN, then its gradient
  Tensor dq, dk, dv, d_o;  // (N, A) c; after them q, k, v, o and log_z where computed again
  Tensor router_y;         // (N', D): y as the router reads it, in f32
  Tensor router_logits;    // (N, E), in the backward their gradient
  Tensor dgate;            // (N, 2)
  Tensor y_columns;        // (N, D') c: columns of y; this and the next are absent if P = 1
  Tensor sum_columns;      // (N, D'): columns of what is added to a tensor by rows
  Tensor sent;             // (S_max, D') c: rows in send order; in the backward their gradient
  Tensor exchanged;        // (M_max, D') c: rows in expert order; in the backward their gradient
  Tensor received;         // (M_max, D') c: see MoeActivations
  Tensor expert_x;         // (M_c, D) c: all columns of a chunk's rows; this and the next two are
                           // absent if P = 1
  Tensor expert_d;         // (M_c, D) c: the same of their gradient
  Tensor expert_sum;       // (M_c, D): what the chunk's experts add up to here
  Tensor expert_h;         // (M_c, F) c: of a chunk of experts, then its gradient
  Tensor logits;           // (loss_chunk_rows, V), then their gradient
  Tensor logits_operand;   // (loss_chunk_rows, V) c: that gradient as products read it; in bf16 it
                           // begins one row before `logits` and takes over its memory
  Tensor token_loss;       // (loss_chunk_rows) on its way from a device; absent in training
};

// Some of a rank's experts and the rows that they received, as views; M_c rows at most.
struct ExpertChunk {
  std::int64_t begin = 0, end = 0;          // local experts
  std::int64_t row_begin = 0, row_end = 0;  // in expert order
  Tensor offsets;                           // (end - begin + 1) i64, host, from 0
  Tensor gate, up, h;                       // (rows, ...)
  Tensor sum;                               // (rows, D), see Scratch::expert_sum

  std::int64_t num_rows() const { return row_end - row_begin; }
  Tensor of_stack(Tensor stack) const { return stack.rows(begin, end); }       // (El, ...)
  Tensor of_rows(Tensor rows) const { return rows.rows(row_begin, row_end); }  // (M_max, ...)
};

// The sizes of this rank's share of the network in a tensor group.
struct TensorShare {
  std::int64_t num_tokens = 0;  // N'
  std::int64_t d_columns = 0;   // D'
  std::int64_t num_heads = 0, attention_dim = 0, ffn_dim = 0, gate_dim = 0, vocab_size = 0;
};

struct BatchTensors {
  Tensor inputs, targets;  // (N) i32
  Tensor loss_weights;     // (N) f32
  Tensor segment_ids;      // (N) i32
  Tensor routed;           // (N) i32: tokens that enter the router
};

}  // namespace openmoe
