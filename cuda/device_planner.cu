#include "cuda/device_planner.h"

#include <numeric>

#include "core/base/check.h"
#include "cuda/check.h"
#include "cuda/device.cuh"
#include "cuda/device_ops.h"
#include "cuda/launch.h"
#include "cuda/scan.cuh"

namespace openmoe {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;

// Block (group, expert), since a grid may be long but not high: the rows that the expert keeps of
// the group's assignments.
__global__ void __launch_bounds__(kThreads)
    count_rows_kernel(std::int32_t* queue_rows, const std::int32_t* choice,
                      const std::int32_t* slot, std::int64_t assignments) {
  __shared__ int room[kWarp];
  const std::int64_t group = blockIdx.x, first = group * assignments;
  const auto expert = static_cast<std::int32_t>(blockIdx.y);
  int count = 0;
  for (std::int64_t i = threadIdx.x; i < assignments; i += kThreads)
    count += slot[first + i] >= 0 && choice[first + i] == expert;
  count = block_sum(count, room);
  if (threadIdx.x == 0) queue_rows[static_cast<std::int64_t>(expert) * gridDim.x + group] = count;
}

// queue_rows (E, groups) become the first rows of the queues; expert_rows (E) the rows of each
// expert. One block.
__global__ void __launch_bounds__(kScanThreads)
    scan_queues_kernel(std::int32_t* queue_rows, std::int64_t* expert_rows, std::int64_t E,
                       std::int64_t groups) {
  __shared__ int room[kWarp + 1];
  for (std::int64_t e = threadIdx.x; e < E; e += kScanThreads) {
    std::int64_t sum = 0;
    for (std::int64_t g = 0; g < groups; ++g) sum += queue_rows[e * groups + g];
    expert_rows[e] = sum;
  }
  __syncthreads();
  scan_in_place<kScanThreads>(queue_rows, E * groups, room);
}

__global__ void __launch_bounds__(kThreads)
    number_rows_kernel(std::int32_t* row_token, std::int32_t* assignment_row,
                       const std::int32_t* choice, const std::int32_t* slot,
                       const std::int32_t* queue_begin, std::int64_t assignments,
                       std::int64_t per_group, std::int64_t groups) {
  for (std::int64_t a = global_thread(); a < assignments; a += num_global_threads()) {
    const std::int32_t place = slot[a];
    std::int32_t row = -1;
    if (place >= 0) {
      row = queue_begin[choice[a] * groups + a / per_group] + place;
      row_token[row] = static_cast<std::int32_t>(a / 2);
    }
    assignment_row[a] = row;
  }
}

}  // namespace
}  // namespace cuda

DevicePlanner::DevicePlanner(CudaOps& ops, const ExchangeShape& shape, std::int64_t ep)
    : RoutingPlanner(shape, ep), ops_(ops) {
  OPENMOE_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host_expert_rows_),
                              static_cast<std::size_t>(shape.num_experts) * sizeof(std::int64_t)));
}

DevicePlanner::~DevicePlanner() {
  cudaFreeHost(host_expert_rows_);
}

void DevicePlanner::allocate_buffers(Arena& arena) {
  const std::int64_t queues = shape().num_tokens / shape().group_tokens * shape().num_experts;
  queue_begin_ = arena.allocate("queue_begin", MemoryCategory::exchange, DType::i32, {queues});
  expert_rows_ =
      arena.allocate("expert_rows", MemoryCategory::exchange, DType::i64, {shape().num_experts});
}

void DevicePlanner::plan_sent(Routing& routing, Tensor choice, Tensor slot) {
  const std::int64_t assignments = 2 * shape().num_tokens, per_group = 2 * shape().group_tokens,
                     E = shape().num_experts;
  const std::int64_t groups = shape().num_tokens / shape().group_tokens;
  const cudaStream_t stream = ops_.stream();
  const auto* const choices = choice.as<std::int32_t>();
  const auto* const slots = slot.as<std::int32_t>();
  auto* const queues = queue_begin_.as<std::int32_t>();
  cuda::launch(stream, {.blocks = groups, .threads = cuda::kThreads, .blocks_y = E},
               cuda::count_rows_kernel, queues, choices, slots, per_group);
  cuda::launch(stream, {.blocks = 1, .threads = cuda::kScanThreads}, cuda::scan_queues_kernel,
               queues, expert_rows_.as<std::int64_t>(), E, groups);
  cuda::launch(stream, cuda::blocks_for(assignments, cuda::kThreads), cuda::number_rows_kernel,
               routing.row_token.as<std::int32_t>(), routing.assignment_row.as<std::int32_t>(),
               choices, slots, queues, assignments, per_group, groups);
  OPENMOE_CUDA(cudaMemcpyAsync(host_expert_rows_, expert_rows_.data,
                               static_cast<std::size_t>(expert_rows_.size_bytes()),
                               cudaMemcpyDeviceToHost, stream));
  OPENMOE_CUDA(cudaStreamSynchronize(stream));
  routing.sent_per_expert.assign(host_expert_rows_, host_expert_rows_ + E);
  routing.num_sent = std::accumulate(routing.sent_per_expert.begin(), routing.sent_per_expert.end(),
                                     std::int64_t{0});
  OPENMOE_CHECK(routing.num_sent <= shape().max_sent(), routing.num_sent,
                " kept assignments, room for ", shape().max_sent());
}

std::unique_ptr<RoutingPlanner> make_cuda_planner(Ops& ops, const ExchangeShape& shape,
                                                  std::int64_t ep) {
  auto* const cuda_ops = dynamic_cast<CudaOps*>(&ops);
  OPENMOE_CHECK(cuda_ops != nullptr, "a CUDA planner for ", ops.name());
  return std::make_unique<DevicePlanner>(*cuda_ops, shape, ep);
}

}  // namespace openmoe
