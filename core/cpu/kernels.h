// The table of inner kernels of one instruction set. kernels_<isa>.cpp compile kernels_body.h with
// their own flags; everything above them (gemm.cpp, attention.cpp) is compiled once for the base
// machine and calls through this table.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/cpu/cpu_features.h"

namespace openmoe::cpu {

// Product of packed blocks. A packed value is 32 bits wide: one f32, or for bf16 products a pair of
// neighbours along k. "Depth" counts packed values along k.
//
// Packed A: tiles of consecutive rows; a tile of h rows is [depth][h]. Tile heights differ by at
// most one and are at most tile_rows (see tile_heights in kernels_body.h). Packed B: panels of
// panel_cols columns, each [depth][panel_cols], the last one filled up with zeros.
struct GemmKernels {
  std::int64_t tile_rows;
  std::int64_t panel_cols;
  std::int64_t k_per_value;  // 1, or 2 for pairs

  // packed <- rows x k values of op(A), whose element (0, 0) is at `a`. Writes up to kPackSlack
  // values beyond the block.
  void (*pack_a)(float* packed, const void* a, std::int64_t ld, bool transposed, std::int64_t rows,
                 std::int64_t k);
  // packed <- k x cols values of op(B), whose element (0, 0) is at `b`.
  void (*pack_b)(float* packed, const void* b, std::int64_t ld, bool transposed, std::int64_t k,
                 std::int64_t cols);
  // c (rows, cols) = or += packed A * packed B.
  void (*multiply)(const float* a, const float* b, float* c, std::int64_t ldc, std::int64_t rows,
                   std::int64_t cols, std::int64_t depth, bool accumulate);
};

// Values that pack_a may write beyond the end of its block.
inline constexpr std::int64_t kPackSlack = 64;

// One (row, head) of attention: pointers stand at position 0, position t is t * stride further.
struct AttentionHead {
  std::int64_t T, Dh, stride;
  const std::int32_t* segment_ids;  // (T)
  float scale;
};

// See attention.h. `scratch` is 64-byte aligned and as large as the _scratch function says.
struct AttentionKernels {
  std::int64_t (*forward_scratch)(std::int64_t T, std::int64_t Dh);
  std::int64_t (*backward_scratch)(std::int64_t T, std::int64_t Dh);
  void (*forward)(const AttentionHead& head, float* o, float* log_z, const float* q, const float* k,
                  const float* v, float* scratch);
  void (*backward)(const AttentionHead& head, float* dq, float* dk, float* dv, const float* d_o,
                   const float* q, const float* k, const float* v, const float* o,
                   const float* log_z, float* scratch);
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
  AttentionKernels attention;
  ConvertKernels convert;
};

const CpuKernels& kernels_generic();
const CpuKernels& kernels_avx2();
const CpuKernels& kernels_avx512();
const CpuKernels& kernels_avx512_bf16();

// The table of an instruction set that this CPU has.
const CpuKernels& kernels_for(CpuIsa isa);

}  // namespace openmoe::cpu
