// Every activation of the network as a named member, with its shape. The network can be read off
// these structs. Tensors of a sublayer are saved from its forward for its backward; Scratch is
// shared by all sublayers.
#pragma once

#include <vector>

#include "core/moe/token_exchange.h"
#include "core/ops.h"
#include "core/tensor.h"

namespace openmoe {

// x' = x + Wo attention(rope(Wq y), rope(Wk y), Wv y), y = rms_norm(x)
struct AttentionActivations {
  Tensor rstd;     // (N)
  Tensor y;        // (N, D)
  Tensor q, k, v;  // (N, A), q and k after rotation
  Tensor o;        // (N, A)
  Tensor log_z;    // (B, H, T)
};

// x' = x + Wd (act(Wg y, Wu y))
struct FfnActivations {
  Tensor rstd;  // (N); absent in the parallel residual FFN, which shares the MoE sublayer's norm
  Tensor y;     // (N, D); likewise
  Tensor gate;  // (N, Fg); becomes its own gradient in the backward
  Tensor up;    // (N, F); likewise
  Tensor h;     // (N, F)
};

// x' = x + sum_k gate_k expert_k(y)
struct MoeActivations {
  Tensor rstd;          // (N)
  Tensor y;             // (N, D)
  RouterOutput router;  // see ops.h
  Routing routing;
  Tensor received;     // (M_max, D) rows of y in expert order
  Tensor expert_gate;  // (M_max, Fg); becomes its own gradient in the backward
  Tensor expert_up;    // (M_max, F); likewise
  Tensor expert_h;     // (M_max, F)
  Tensor returned;     // (S_max, D) expert outputs in send order
};

struct LayerActivations {
  AttentionActivations attention;
  MoeActivations moe;  // MoE layers only
  FfnActivations ffn;
  // The residual stream (N, D) as each sublayer reads it. The MoE sublayer's input is `x_ffn` in a
  // dense layer.
  Tensor x_attention, x_moe, x_ffn;
};

struct Scratch {
  Tensor dx;               // (N, D) gradient of the residual stream
  Tensor dy;               // (N, D)
  Tensor dh;               // (N, F)
  Tensor dq, dk, dv, d_o;  // (N, A)
  Tensor router_logits;    // (N, E), in the backward their gradient
  Tensor dgate;            // (N, 2)
  Tensor sent;             // (S_max, D) rows in send order; in the backward their gradient
  Tensor exchanged;        // (M_max, D) rows in expert order; in the backward their gradient
  Tensor expert_dh;        // (M_max, F)
  Tensor logits;           // (loss_chunk_rows, V)
};

struct BatchTensors {
  Tensor inputs, targets;  // (N) i32
  Tensor loss_weights;     // (N) f32
  Tensor segment_ids;      // (N) i32
  Tensor routed;           // (N) i32: tokens that enter the router
};

}  // namespace openmoe
