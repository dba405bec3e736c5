#include "core/base/check.h"
#include "cuda/cuda_ops.h"
#include "cuda/device.cuh"
#include "cuda/kernel_shapes.h"
#include "cuda/launch.h"
#include "cuda/sort.h"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Sorted tokens of one block of the backward.
constexpr int kRun = 32;

// A warp per token. An id outside the table gives NaN, which reaches the loss, and is reported at
// the next wait.
// hot: at least 6 blocks per SM
// bytes: 6 of 6 per element of x (bf16 table), 8 in flight per thread
template <typename X, typename W, int kWidth>
__global__ void __launch_bounds__(kThreads)
    embedding_forward_kernel(X* x, const W* table, const std::int32_t* ids, int* bad_id,
                             std::int64_t N, std::int64_t V, std::int64_t D) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (std::int64_t n = global_thread() / kWarp; n < N; n += num_global_threads() / kWarp) {
    const std::int32_t id = ids[n];
    const bool known = id >= 0 && id < V;
    if (!known && lane == 0) *bad_id = 1;
    for (std::int64_t d = lane * kWidth; d < D; d += kWarp * kWidth) {
      float value[kWidth];
      if (known) {
        load(value, table + id * D + d);
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) value[j] = __int_as_float(0x7fffffff);
      }
      store(x + n * D + d, value);
    }
  }
}

// The keys to sort: the id, or V for one outside the table.
__global__ void __launch_bounds__(kThreads)
    embedding_keys_kernel(std::int32_t* keys, int* bad_id, const std::int32_t* ids, std::int64_t N,
                          std::int64_t V) {
  for (std::int64_t n = global_thread(); n < N; n += num_global_threads()) {
    const std::int32_t id = ids[n];
    const bool known = id >= 0 && id < V;
    if (!known) *bad_id = 1;
    keys[n] = known ? id : static_cast<std::int32_t>(V);
  }
}

// Block (run, columns): sums the gradients of kRun sorted tokens by id, a thread per column. An id
// whose tokens all lie in this run is added to the table here. The sum of an id that came from the
// run before goes to head, whether or not it ends here; the sum of one that begins here and goes
// on, to tail.
// hot: at least 6 blocks per SM
// bytes: 12 of 12 per element of dx (no token twice), 4 in flight per thread
template <typename X>
__global__ void __launch_bounds__(kThreads)
    embedding_runs_kernel(float* dtable, float* head, float* tail, const X* dx,
                          const std::int32_t* ids, const std::int32_t* order, std::int64_t N,
                          std::int64_t V, std::int64_t D) {
  const std::int64_t d = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (d >= D) return;
  for (std::int64_t run = blockIdx.x; run * kRun < N; run += gridDim.x) {
    const std::int64_t begin = run * kRun, end = begin + kRun < N ? begin + kRun : N;
    bool from_before = begin > 0 && ids[begin - 1] == ids[begin];
    float sum = 0.0f;
    for (std::int64_t i = begin; i < end; ++i) {
      sum += to_float(dx[order[i] * D + d]);
      const std::int32_t id = ids[i];
      const bool last_of_run = i + 1 == end, goes_on = i + 1 < N && ids[i + 1] == id;
      if (goes_on && !last_of_run) continue;
      if (from_before)
        head[run * D + d] = sum;
      else if (goes_on)
        tail[run * D + d] = sum;
      else if (id < V)
        dtable[id * D + d] += sum;
      from_before = false;
      sum = 0.0f;
    }
  }
}

// Adds up the parts of the ids that cross runs; the block of the run where an id begins does it, in
// order.
__global__ void __launch_bounds__(kThreads)
    embedding_join_kernel(float* dtable, const float* head, const float* tail,
                          const std::int32_t* ids, std::int64_t N, std::int64_t V, std::int64_t D) {
  const std::int64_t d = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (d >= D) return;
  for (std::int64_t run = blockIdx.x; (run + 1) * kRun < N; run += gridDim.x) {
    const std::int64_t begin = run * kRun, end = begin + kRun;
    const std::int32_t id = ids[end - 1];
    const bool begins_here = begin == 0 || ids[begin - 1] != id;
    if (id >= V || ids[end] != id || !begins_here) continue;
    float sum = tail[run * D + d];
    for (std::int64_t next = run + 1; next * kRun < N && ids[next * kRun] == id; ++next)
      sum += head[next * D + d];
    dtable[id * D + d] += sum;
  }
}

}  // namespace
}  // namespace cuda

void CudaOps::do_embedding_forward(Tensor x, Tensor table, Tensor ids,
                                   const VocabularyRange& range) {
  OPENMOE_CHECK(range.is_whole(), "a vocabulary shared by devices");
  const std::int64_t N = x.size(0), D = x.size(1);
  cuda::with_storage(table.dtype, [&]<typename W>(std::type_identity<W>) {
    cuda::with_width<4>(cuda::can_vectorise(4, D, x, table), [&](auto width) {
      cuda::launch(stream_, cuda::blocks_for(N, cuda::kThreads / cuda::kWarp),
                   cuda::embedding_forward_kernel<float, W, width.value>, x.as<float>(),
                   table.as<W>(), ids.as<std::int32_t>(), &device_report_->bad_id, N, table.size(0),
                   D);
    });
  });
}

// Tokens share table rows, so they are sorted by id: every row of the table then has one owner,
// which adds its tokens in rising order.
void CudaOps::do_embedding_backward(Tensor dtable, Tensor dx, Tensor ids,
                                    const VocabularyRange& range) {
  OPENMOE_CHECK(range.is_whole(), "a vocabulary shared by devices");
  const std::int64_t N = dx.size(0), D = dx.size(1), V = dtable.size(0);
  if (N == 0 || D == 0) return;
  const std::int64_t runs = cuda::ceil_div(N, cuda::kRun);
  cuda::SortBuffers buffers{};
  float *head = nullptr, *tail = nullptr;
  cuda::carve(scratch_, [&](cuda::ScratchCursor& cursor) {
    for (int i = 0; i < 2; ++i) {
      buffers.keys[i] = cursor.take<std::int32_t>(N);
      buffers.order[i] = cursor.take<std::int32_t>(N);
    }
    buffers.counts = cursor.take<std::int32_t>(cuda::sort_counts(N));
    head = cursor.take<float>(runs * D);
    tail = cursor.take<float>(runs * D);
  });
  cuda::launch(stream_, cuda::blocks_for(N, cuda::kThreads), cuda::embedding_keys_kernel,
               buffers.keys[0], &device_report_->bad_id, ids.as<std::int32_t>(), N, V);
  const int sorted = cuda::sort_keys(stream_, buffers, N, V);
  cuda::LaunchShape shape = cuda::blocks_for(runs, 1, cuda::kThreads);
  shape.blocks_y = cuda::ceil_div(D, cuda::kThreads);
  cuda::launch(stream_, shape, cuda::embedding_runs_kernel<float>, dtable.as<float>(), head, tail,
               dx.as<float>(), buffers.keys[sorted], buffers.order[sorted], N, V, D);
  cuda::launch(stream_, shape, cuda::embedding_join_kernel, dtable.as<float>(), head, tail,
               buffers.keys[sorted], N, V, D);
}

}  // namespace openmoe
