// Inner kernels of decoding, one stretch in one thread. One source (dot_kernels_body.h), compiled
// once per instruction set and chosen at run time. Each result is a fixed sequence of operations on
// its own row, whatever rows are computed beside it; so a sequence's values do not depend on the
// batch, to the bit.
#pragma once

#include <cstdint>

#include "core/infer/packed_matrix.h"

namespace openmoe::infer {

// Products of `rows` rows of x with panels of a PackedMatrix whose rows are `in` wide.
struct PanelProduct {
  float* y;  // (rows, y_ld), written at columns [0, num_out)
  std::int64_t y_ld;
  const float* x;  // (rows, x_ld), zeros from `in` to padded(in)
  std::int64_t x_ld;
  std::int64_t rows;
  const char* panels;  // of the first column
  std::int64_t num_out;
  std::int64_t in;
};

// One query of one head against the cached positions [0, length).
//   keys   [length / 16][head_dim][16 positions]
//   values [length][head_dim]
struct AttentionQuery {
  float* o;        // (head_dim)
  const float* q;  // (head_dim)
  const float* keys;
  const float* values;
  std::int64_t length, head_dim;
  float scale;
  float* scores;  // scratch, padded(length)
};

struct DotKernels {
  void (*products_f32)(const PanelProduct& product);
  void (*products_bf16)(const PanelProduct& product);
  void (*attend)(const AttentionQuery& query);
  // h = gate_linear * swish(gate) * up, or swish(gate) * up where gate_linear is null.
  void (*activate)(float* h, const float* gate_linear, const float* gate, const float* up,
                   std::int64_t count);
};

const DotKernels& dot_kernels_generic();
const DotKernels& dot_kernels_avx2();
const DotKernels& dot_kernels_avx512();
// Those of cpu_isa().
const DotKernels& dot_kernels();

}  // namespace openmoe::infer
