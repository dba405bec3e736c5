// Row kernels: the inner loops of the element-wise and row-wise ops, each on one stretch of
// values in one thread. One source (row_kernels_impl.h), compiled once per instruction set and
// chosen at run time; every choice gives the same bits. Loops over rows, threads and chunks are in
// the op files.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/cpu/cpu_features.h"

namespace openmoe::cpu {

// A sum runs for at most this many values in sixteen f32 lanes before it is emptied into an f64.
inline constexpr std::int64_t kReductionBlock = 1024;

struct ExpSum {
  float largest;        // max(x)
  std::int64_t argmax;  // its first index
  double sum;           // sum of e^(x - largest)
};

// The kernels of rows that are stored as S, f32 or bf16; arithmetic is f32 in either case, and a
// bf16 result is rounded once, when it is stored.
template <class S>
struct StorageKernels {
  // y += x
  void (*add)(float* y, const S* x, std::int64_t n);
  // y += a x
  void (*add_scaled)(float* y, float a, const S* x, std::int64_t n);
  // y = a x; y may be x
  void (*scale)(S* y, float a, const float* x, std::int64_t n);
  float (*dot)(const float* a, const S* b, std::int64_t n);

  // y = x * rstd * w; returns rstd = 1 / sqrt(mean(x^2) + eps)
  float (*rms_norm)(S* y, const float* x, const float* w, float eps, std::int64_t n);

  // h = swish(gate) up
  void (*swiglu)(S* h, const S* gate, const S* up, std::int64_t n);
  // h = a swish(b) up
  void (*gated_swiglu)(S* h, const S* a, const S* b, const S* up, std::int64_t n);
  // The gradients may overwrite what they are the gradients of.
  void (*swiglu_backward)(S* dgate, S* dup, const S* dh, const S* gate, const S* up,
                          std::int64_t n);
  void (*gated_swiglu_backward)(S* da, S* db, S* dup, const S* dh, const S* a, const S* b,
                                const S* up, std::int64_t n);

  // (x1, x2) = (x1 cos - x2 sin, x2 cos + x1 sin)
  void (*rotate)(S* x1, S* x2, const float* cos, const float* sin, std::int64_t n);
};

struct RowKernels : StorageKernels<float> {
  StorageKernels<BFloat16> bf16;

  template <class S>
  const StorageKernels<S>& stored_as() const {
    if constexpr (std::is_same_v<S, float>)
      return *this;
    else
      return bf16;
  }

  // Short stretches in f32, their sums in f64.
  double (*sum_of_squares)(const float* x, std::int64_t n);
  // dx += rstd * (dy w - x^ mean(dy w x^)), dw += dy x^, with x^ = x rstd
  void (*rms_norm_backward)(float* dx, float* dw, const float* dy, const float* x, const float* w,
                            float rstd, std::int64_t n);

  // In one pass over memory.
  ExpSum (*exp_sum)(const float* x, std::int64_t n);
  // The same, and x[i] = e^(x[i] - shifts[i / kReductionBlock]): the maximum may still rise while
  // values are written, so each block has its own shift, to be made good by a later pass. shifts (n
  // / kReductionBlock, rounded up)
  ExpSum (*exp_sum_in_place)(float* x, float* shifts, std::int64_t n);
  // y = factor * e^(x - shift); y may be x
  void (*exp_scaled)(float* y, const float* x, float shift, float factor, std::int64_t n);

  // column_sums += g^2; *g_square += sum of g^2, *w_square += sum of w^2
  void (*adafactor_sums)(float* column_sums, const float* g, const float* w, std::int64_t n,
                         double* g_square, double* w_square);
  // sum of (g f)^2
  double (*product_square_sum)(const float* g, const float* f, std::int64_t n);
  // w -= a g f
  void (*subtract_scaled_product)(float* w, float a, const float* g, const float* f,
                                  std::int64_t n);
};

// The kernels for an instruction set that this machine has.
const RowKernels& row_kernels(CpuIsa isa);

// One per translation unit with its own compiler flags (core/CMakeLists.txt).
extern const RowKernels kRowKernelsGeneric;
extern const RowKernels kRowKernelsAvx2;
extern const RowKernels kRowKernelsAvx512;

}  // namespace openmoe::cpu
