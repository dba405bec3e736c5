#include "cuda/device_exchange.h"

#include <algorithm>
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
// Blocks of rows that fit in the arguments of one kernel.
constexpr int kBlockBatch = 64;

struct BlockBatch {
  DeviceExchange::Block blocks[kBlockBatch];
};

// Block (expert, group): the rows that the expert keeps of the group's assignments.
__global__ void __launch_bounds__(kThreads)
    count_rows_kernel(std::int32_t* queue_rows, const std::int32_t* choice,
                      const std::int32_t* slot, std::int64_t assignments) {
  __shared__ int room[kWarp];
  const std::int64_t first = blockIdx.y * assignments;
  int count = 0;
  for (std::int64_t i = threadIdx.x; i < assignments; i += kThreads)
    count += slot[first + i] >= 0 && choice[first + i] == static_cast<std::int32_t>(blockIdx.x);
  count = block_sum(count, room);
  if (threadIdx.x == 0)
    queue_rows[static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y] = count;
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

// Block (x, block of rows): copies `row_words` words per row. Outer rows are in `sent` or in
// `staging`.
// hot: at least 6 blocks per SM
// bytes: 4 of 4 per element of rows (bf16), 16 in flight per thread
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    copy_blocks_kernel(Word* sent, Word* staging, Word* expert_rows, BlockBatch batch,
                       bool to_experts, std::int64_t row_words) {
  const DeviceExchange::Block block = batch.blocks[blockIdx.y];
  Word* const outer = (block.is_own != 0 ? sent : staging) + block.outer_row * row_words;
  Word* const inner = expert_rows + block.expert_row * row_words;
  Word* const to = to_experts ? inner : outer;
  const Word* const from = to_experts ? outer : inner;
  for (std::int64_t i = global_thread(); i < block.num_rows * row_words; i += num_global_threads())
    to[i] = from[i];
}

struct alignas(16) Words4 {
  std::uint32_t at[4];
};

}  // namespace
}  // namespace cuda

DeviceExchange::DeviceExchange(CudaOps& ops, const ExchangeShape& shape, DeviceCommunicator* group)
    : ops_(ops), planner_(shape, group == nullptr ? 1 : group->group().size()), group_(group) {
  OPENMOE_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host_expert_rows_),
                              static_cast<std::size_t>(shape.num_experts) * sizeof(std::int64_t)));
  for (auto* per_rank :
       {&peer_sent_, &peer_sent_offsets_, &peer_received_, &peer_received_offsets_})
    per_rank->resize(static_cast<std::size_t>(planner_.ep()));
}

DeviceExchange::~DeviceExchange() {
  cudaFreeHost(host_expert_rows_);
}

void DeviceExchange::allocate_routing(Arena& arena, Routing& routing) {
  const ExchangeShape& shape = planner_.shape();
  routing.row_token =
      arena.allocate("row_token", MemoryCategory::exchange, DType::i32, {max_sent()});
  routing.assignment_row =
      arena.allocate("assignment_row", MemoryCategory::exchange, DType::i32, {shape.num_tokens, 2});
  if (!arena.is_dry()) {
    auto& offsets =
        expert_offsets_.emplace_back(static_cast<std::size_t>(num_local_experts() + 1), 0);
    routing.expert_offsets = host_view(offsets.data(), {num_local_experts() + 1});
  }
  routing.sent_per_expert.assign(static_cast<std::size_t>(shape.num_experts), 0);
  routing.received_per_source.assign(static_cast<std::size_t>(shape.num_experts), 0);
}

void DeviceExchange::allocate_buffers(Arena& arena) {
  const ExchangeShape& shape = planner_.shape();
  const std::int64_t queues = shape.num_tokens / shape.group_tokens * shape.num_experts;
  const std::int64_t staged = (planner_.ep() - 1) * planner_.max_rows_per_pair(num_local_experts());
  queue_begin_ = arena.allocate("queue_begin", MemoryCategory::exchange, DType::i32, {queues});
  expert_rows_ =
      arena.allocate("expert_rows", MemoryCategory::exchange, DType::i64, {shape.num_experts});
  staging_ =
      arena.allocate("staged rows", MemoryCategory::exchange, DType::f32, {staged, shape.d_model});
}

void DeviceExchange::plan(Routing& routing, Tensor choice, Tensor slot) {
  const ExchangeShape& shape = planner_.shape();
  const std::int64_t assignments = 2 * shape.num_tokens, per_group = 2 * shape.group_tokens,
                     E = shape.num_experts;
  const std::int64_t groups = shape.num_tokens / shape.group_tokens;
  const cudaStream_t stream = ops_.stream();
  const auto* const choices = choice.as<std::int32_t>();
  const auto* const slots = slot.as<std::int32_t>();
  auto* const queues = queue_begin_.as<std::int32_t>();
  cuda::launch(stream, {.blocks = E, .threads = cuda::kThreads, .blocks_y = groups},
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
  OPENMOE_CHECK(routing.num_sent <= max_sent(), routing.num_sent, " kept assignments, room for ",
                max_sent());
  if (planner_.ep() == 1)
    routing.received_per_source = routing.sent_per_expert;
  else
    group_->group().all_to_all(routing.sent_per_expert, routing.received_per_source,
                               num_local_experts());
  planner_.plan_received(routing);
}

// Own rows go straight between send order and expert order; those of the others by way of staging_,
// where they lie by (source, local expert).
void DeviceExchange::lay_out(const Routing& routing) {
  const std::int64_t local_experts = num_local_experts(), self = group_->group().rank_in_group();
  std::vector<std::int64_t> next_expert_row(
      routing.expert_offsets.as<std::int64_t>(),
      routing.expert_offsets.as<std::int64_t>() + local_experts);
  blocks_.clear();
  std::int64_t sent_row = 0, staged_row = 0;
  for (std::int64_t rank = 0; rank < planner_.ep(); ++rank) {
    const auto peer = static_cast<std::size_t>(rank);
    const std::int64_t* const sent = routing.sent_per_expert.data() + rank * local_experts;
    const std::int64_t* const received = routing.received_per_source.data() + rank * local_experts;
    const std::int64_t rows_sent = std::accumulate(sent, sent + local_experts, std::int64_t{0});
    const std::int64_t rows_received =
        std::accumulate(received, received + local_experts, std::int64_t{0});
    const bool is_own = rank == self;
    peer_sent_[peer] = is_own ? 0 : rows_sent;
    peer_sent_offsets_[peer] = sent_row;
    peer_received_[peer] = is_own ? 0 : rows_received;
    peer_received_offsets_[peer] = staged_row;
    std::int64_t outer_row = is_own ? sent_row : staged_row;
    for (std::int64_t e = 0; e < local_experts; ++e) {
      std::int64_t& expert_row = next_expert_row[static_cast<std::size_t>(e)];
      if (received[e] > 0) blocks_.push_back({outer_row, expert_row, received[e], is_own});
      outer_row += received[e];
      expert_row += received[e];
    }
    sent_row += rows_sent;
    if (!is_own) staged_row += rows_received;
  }
}

void DeviceExchange::copy_blocks(Direction direction, Tensor sent, Tensor expert_rows) {
  const std::int64_t row_bytes = sent.size(1) * size_of(sent.dtype);
  const bool to_experts = direction == Direction::to_experts;
  for (std::size_t first = 0; first < blocks_.size(); first += cuda::kBlockBatch) {
    cuda::BlockBatch batch{};
    const std::size_t count = std::min<std::size_t>(cuda::kBlockBatch, blocks_.size() - first);
    std::int64_t longest = 0;
    for (std::size_t i = 0; i < count; ++i) {
      batch.blocks[i] = blocks_[first + i];
      longest = std::max(longest, batch.blocks[i].num_rows);
    }
    const auto copy = [&](auto word) {
      using Word = decltype(word);
      const std::int64_t row_words = row_bytes / static_cast<std::int64_t>(sizeof(Word));
      cuda::LaunchShape shape = cuda::blocks_for(longest * row_words, cuda::kThreads);
      shape.blocks_y = static_cast<std::int64_t>(count);
      cuda::launch(ops_.stream(), shape, cuda::copy_blocks_kernel<Word>,
                   static_cast<Word*>(sent.data), static_cast<Word*>(staging_.data),
                   static_cast<Word*>(expert_rows.data), batch, to_experts, row_words);
    };
    const auto aligned = [](const Tensor& x) {
      return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
    };
    if (row_bytes % 16 == 0 && aligned(sent) && aligned(expert_rows))
      copy(cuda::Words4{});
    else
      copy(std::uint16_t{});
  }
}

void DeviceExchange::start_dispatch(Tensor sent, Tensor received, const Routing& routing,
                                    std::int64_t) {
  lay_out(routing);
  const Tensor staged{staging_.data, sent.dtype, sent.device, {staging_.size(0), sent.size(1)}};
  group_->all_to_all_rows(sent, {peer_sent_, peer_sent_offsets_}, staged,
                          {peer_received_, peer_received_offsets_});
  copy_blocks(Direction::to_experts, sent, received);
}

void DeviceExchange::start_combine(Tensor rows, Tensor returned, const Routing& routing,
                                   std::int64_t) {
  lay_out(routing);
  const Tensor staged{staging_.data, rows.dtype, rows.device, {staging_.size(0), rows.size(1)}};
  copy_blocks(Direction::from_experts, returned, rows);
  group_->all_to_all_rows(staged, {peer_received_, peer_received_offsets_}, returned,
                          {peer_sent_, peer_sent_offsets_});
}

std::unique_ptr<TokenExchange> make_cuda_exchange(Ops& ops, const ExchangeShape& shape,
                                                  DeviceCommunicator* group) {
  auto* const cuda_ops = dynamic_cast<CudaOps*>(&ops);
  OPENMOE_CHECK(cuda_ops != nullptr, "a CUDA exchange for ", ops.name());
  return std::make_unique<DeviceExchange>(*cuda_ops, shape, group);
}

}  // namespace openmoe
