// Tokens to expert rows and back: all moved by a warp per row. A token owns its rows, so nothing is
// written twice.
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

// Rows of D words of any content.
// hot: at least 5 blocks per SM
// bytes: 4 of 4 per element of rows (bf16), 16 in flight per thread
template <typename Word>
__global__ void __launch_bounds__(kThreads, 6)
    gather_rows_kernel(Word* rows, const Word* x, const std::int32_t* row_token,
                       std::int64_t num_rows, std::int64_t D) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t s = global_thread() / kWarp; s < num_rows; s += num_global_threads() / kWarp) {
    const Word* const from = x + row_token[s] * D;
#pragma unroll 2  // more registers than that would cost a block
    for (std::int64_t d = lane; d < D; d += kWarp)
      *checked_pointer<Word>(rows + s * D + d) = *checked_pointer<Word>(from + d);
  }
}

// y[n] += sum over the token's rows of weight * row; kGated: weight is the gate, otherwise 1.
// hot: at least 5 blocks per SM
// bytes: 12 of 12 per element of y (f32 y, bf16 rows), 32 in flight per thread
template <typename Row, bool kGated, int kWidth>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(float* y, const Row* rows, const float* gate,
                    const std::int32_t* assignment_row, std::int64_t N, std::int64_t D) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t n = global_thread() / kWarp; n < N; n += num_global_threads() / kWarp) {
    const std::int32_t first = assignment_row[2 * n], second = assignment_row[2 * n + 1];
    if (first < 0 && second < 0) continue;
    const float first_weight = kGated ? gate[2 * n] : 1.0f,
                second_weight = kGated ? gate[2 * n + 1] : 1.0f;
    for (std::int64_t d = lane * kWidth; d < D; d += kWarp * kWidth) {
      float sum[kWidth], value[kWidth];
      load(sum, y + n * D + d);
      if (first >= 0) {
        load(value, rows + first * D + d);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum[j] += first_weight * value[j];
      }
      if (second >= 0) {
        load(value, rows + second * D + d);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sum[j] += second_weight * value[j];
      }
      store(y + n * D + d, sum);
    }
  }
}

// drows[row] = gate * dy[n], dgate = <dy[n], rows[row]>, for both rows of a token while dy[n] is at
// hand.
// hot: at least 4 blocks per SM
// bytes: 12 of 12 per element of dy (f32 dy, bf16 rows), 32 in flight per thread
template <typename Row, int kWidth>
__global__ void __launch_bounds__(kThreads)
    combine_backward_kernel(Row* drows, float* dgate, const float* dy, const Row* rows,
                            const float* gate, const std::int32_t* assignment_row, std::int64_t N,
                            std::int64_t D) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t n = global_thread() / kWarp; n < N; n += num_global_threads() / kWarp) {
    float dot[2] = {0.0f, 0.0f};
    std::int64_t row[2];
    float weight[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      row[k] = assignment_row[2 * n + k];
      weight[k] = gate[2 * n + k];
    }
    if (row[0] >= 0 || row[1] >= 0)
      for (std::int64_t d = lane * kWidth; d < D; d += kWarp * kWidth) {
        float gradient[kWidth];
        load(gradient, dy + n * D + d);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          if (row[k] < 0) continue;
          float value[kWidth];
          load(value, rows + row[k] * D + d);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
            dot[k] += gradient[j] * value[j];
            value[j] = weight[k] * gradient[j];
          }
          store(drows + row[k] * D + d, value);
        }
      }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float sum = warp_sum(dot[k]);
      if (lane == 0) dgate[2 * n + k] = sum;
    }
  }
}

}  // namespace
}  // namespace cuda

void CudaOps::do_gather_rows(Tensor rows, Tensor x, Tensor row_token, std::int64_t num_rows) {
  const std::int64_t D = x.size(1), width = 16 / size_of(x.dtype);
  const auto gather = [&]<typename Word>(std::type_identity<Word>, std::int64_t words) {
    cuda::launch(stream_, cuda::blocks_for(num_rows, cuda::kRowsPerBlock),
                 cuda::gather_rows_kernel<Word>, static_cast<Word*>(rows.data),
                 static_cast<const Word*>(x.data), row_token.as<std::int32_t>(), num_rows, words);
  };
  if (cuda::can_vectorise(width, D, rows, x))
    gather(std::type_identity<uint4>{}, D / width);
  else if (x.dtype == DType::bf16)
    gather(std::type_identity<std::uint16_t>{}, D);
  else
    gather(std::type_identity<std::uint32_t>{}, D);
}

void CudaOps::do_gather_rows_backward_accumulate(Tensor dx, Tensor drows, Tensor assignment_row) {
  const std::int64_t N = dx.size(0), D = dx.size(1);
  cuda::with_storage(drows.dtype, [&]<typename Row>(std::type_identity<Row>) {
    constexpr int kWidth = cuda::kVector<Row>;
    cuda::with_width<kWidth>(cuda::can_vectorise(kWidth, D, dx, drows), [&](auto width) {
      cuda::launch(stream_, cuda::blocks_for(N, cuda::kRowsPerBlock),
                   cuda::add_rows_kernel<Row, false, width.value>, dx.as<float>(), drows.as<Row>(),
                   nullptr, assignment_row.as<std::int32_t>(), N, D);
    });
  });
}

void CudaOps::do_combine_rows_forward_accumulate(Tensor y, Tensor rows, Tensor gate,
                                                 Tensor assignment_row) {
  const std::int64_t N = y.size(0), D = y.size(1);
  cuda::with_storage(rows.dtype, [&]<typename Row>(std::type_identity<Row>) {
    constexpr int kWidth = cuda::kVector<Row>;
    cuda::with_width<kWidth>(cuda::can_vectorise(kWidth, D, y, rows), [&](auto width) {
      cuda::launch(stream_, cuda::blocks_for(N, cuda::kRowsPerBlock),
                   cuda::add_rows_kernel<Row, true, width.value>, y.as<float>(), rows.as<Row>(),
                   gate.as<float>(), assignment_row.as<std::int32_t>(), N, D);
    });
  });
}

void CudaOps::do_combine_rows_backward(Tensor drows, Tensor dgate, Tensor dy, Tensor rows,
                                       Tensor gate, Tensor assignment_row) {
  const std::int64_t N = dy.size(0), D = dy.size(1);
  cuda::with_storage(rows.dtype, [&]<typename Row>(std::type_identity<Row>) {
    constexpr int kWidth = cuda::kVector<Row>;
    cuda::with_width<kWidth>(cuda::can_vectorise(kWidth, D, drows, dy, rows), [&](auto width) {
      cuda::launch(stream_, cuda::blocks_for(N, cuda::kRowsPerBlock),
                   cuda::combine_backward_kernel<Row, width.value>, drows.as<Row>(),
                   dgate.as<float>(), dy.as<float>(), rows.as<Row>(), gate.as<float>(),
                   assignment_row.as<std::int32_t>(), N, D);
    });
  });
}

}  // namespace openmoe
