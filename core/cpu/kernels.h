// The table of inner kernels of one instruction set. kernels_<isa>.cpp compile kernels_body.h with
// their own flags; everything above them (gemm.cpp, attention.cpp) is compiled once for the base
// machine and calls through this table.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/cpu/cpu_features.h"

namespace openmoe::cpu {

// An operand in memory: element (i, j) of op(X) is data[i * ld + j], or data[j * ld + i] when
// transposed; data points at the block's element (0, 0).
struct BlockOperand {
  const void* data;
  std::int64_t ld;
  bool transposed;
};

// What becomes of the packed block of B: packed and kept for the next products with it, used as an
// earlier product packed it, or packed panel by panel into the place of one panel.
enum class PackB : std::uint8_t { keep, reuse, discard };

// c (rows, cols) = or += a (rows, k) * b (k, cols).
//
// Packed values are 32 bits wide: one f32, or for bf16 products a pair of neighbours along k;
// "depth" counts them along k. Packed A: tiles of consecutive rows, a tile of h rows being
// [depth][h]; tile heights differ by at most one and are at most tile_rows. Packed B: panels of
// panel_cols columns, each [depth][panel_cols].
struct BlockProduct {
  std::int64_t rows, cols, k;
  BlockOperand a, b;
  float* packed_a;  // rows * depth + kPackSlack
  float* packed_b;  // cols rounded up to panels * depth, or one panel when discarding
  PackB pack_b;
  float* c;
  std::int64_t ldc;
  bool accumulate;
};

struct GemmKernels {
  std::int64_t tile_rows;
  std::int64_t panel_cols;
  std::int64_t k_per_value;  // 1, or 2 for pairs
  void (*multiply)(const BlockProduct& product);
};

// Values that packing A may write beyond the end of its block.
inline constexpr std::int64_t kPackSlack = 64;

// One (row, head) of attention: pointers stand at position 0, position t is t * stride further.
struct AttentionHead {
  std::int64_t T, Dh, stride;
  const std::int32_t* segment_ids;  // (T)
  float scale;
};

// See attention.h. `scratch` is 64-byte aligned and as large as the _scratch function says.
template <class S>
struct AttentionKernels {
  std::int64_t (*forward_scratch)(std::int64_t T, std::int64_t Dh);
  std::int64_t (*backward_scratch)(std::int64_t T, std::int64_t Dh);
  void (*forward)(const AttentionHead& head, S* o, float* log_z, const S* q, const S* k, const S* v,
                  float* scratch);
  void (*backward)(const AttentionHead& head, S* dq, S* dk, S* dv, const S* d_o, const S* q,
                   const S* k, const S* v, const S* o, const float* log_z, float* scratch);
};

// Conversions of blocks of rows; rounding is to nearest even.
struct ConvertKernels {
  void (*to_bf16)(BFloat16* to, std::int64_t to_ld, const float* from, std::int64_t from_ld,
                  std::int64_t rows, std::int64_t cols);
  void (*to_f32)(float* to, std::int64_t to_ld, const BFloat16* from, std::int64_t from_ld,
                 std::int64_t rows, std::int64_t cols);
};

struct CpuKernels {
  GemmKernels f32;   // operands f32
  GemmKernels bf16;  // operands bf16
  AttentionKernels<float> attention;
  AttentionKernels<BFloat16> attention_bf16;  // widened to f32 as it is packed
  ConvertKernels convert;

  template <class S>
  const AttentionKernels<S>& attention_of() const {
    if constexpr (sizeof(S) == sizeof(float))
      return attention;
    else
      return attention_bf16;
  }
};

const CpuKernels& kernels_generic();
const CpuKernels& kernels_avx2();
const CpuKernels& kernels_avx512();
const CpuKernels& kernels_avx512_bf16();

// The table of an instruction set that this CPU has.
const CpuKernels& kernels_for(CpuIsa isa);

}  // namespace openmoe::cpu
