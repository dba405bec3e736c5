// The parameters of each kind of sublayer, as pointers into the ParamTable.
#pragma once

#include "core/param_table.h"

namespace openmoe {

struct AttentionParams {
  Param* norm;       // (D)
  Param *q, *k, *v;  // (A, D)
  Param* o;          // (D, A)
};

struct FfnParams {
  Param* norm;  // (D); null in the parallel residual FFN, which reads the MoE sublayer's normalised
                // input, and in a parallel block, where all read the attention's
  Param* gate;  // (Fg, D)
  Param* up;    // (F, D)
  Param* down;  // (D, F)
};

struct MoeParams {
  Param* norm;    // (D); null in a parallel block
  Param* router;  // (E, D)
  Param* gate;    // (El, D, Fg)
  Param* up;      // (El, D, F)
  Param* down;    // (El, F, D)
};

struct LayerParams {
  bool is_moe = false;
  AttentionParams attention{};
  MoeParams moe{};  // MoE layers only
  FfnParams ffn{};
};

}  // namespace openmoe
