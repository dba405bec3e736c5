#include "apps/exchange_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>

#include "core/arena.h"
#include "cuda/device_ops.h"
#include "parallel/device_communicator.h"

namespace openmoe {
namespace {

constexpr std::int64_t kFactor = 4;

// The slowest rank's.
double slowest(double seconds, Communicator& group) {
  std::int64_t nanoseconds[] = {std::llround(1e9 * seconds)};
  group.all_reduce_max(std::span<std::int64_t>(nanoseconds));
  return 1e-9 * static_cast<double>(nanoseconds[0]);
}

}  // namespace

std::vector<ExchangeSpeed> measure_exchange(Ops& ops, OpClock& clock, Communicator& group,
                                            const std::string& collectives,
                                            const ExchangeSizes& sizes) {
  const std::int64_t ranks = group.size(), element = sizeof(float);
  if (ranks == 1) return {};
  std::unique_ptr<Communicator> device;
  if (ops.device() == Device::cuda)
    device = collectives == "nccl" ? make_nccl_communicator(ops, group)
                                   : make_staged_communicator(ops, group);
  const auto width_of = [&](std::int64_t bytes) {
    return std::max<std::int64_t>(1, bytes / (ranks * element));
  };
  const std::int64_t room = ranks * width_of(sizes.most);
  Arena arena(ops, 2 * (room * element + 64));
  const Tensor sent = arena.allocate("sent", MemoryCategory::exchange, DType::f32, {room});
  const Tensor received = arena.allocate("received", MemoryCategory::exchange, DType::f32, {room});
  const std::vector<std::int64_t> one_row(static_cast<std::size_t>(ranks), 1);
  const RowBlocks blocks{one_row, {}};

  std::vector<ExchangeSpeed> speeds;
  for (std::int64_t bytes = sizes.least; bytes <= sizes.most; bytes *= kFactor) {
    const std::int64_t width = width_of(bytes);
    const Tensor from = sent.rows(0, ranks * width).reshaped({ranks, width}),
                 to = received.rows(0, ranks * width).reshaped({ranks, width});
    const auto exchange = [&] {
      (device ? *device : group)
          .all_to_all_rows(from.data, blocks, to.data, blocks, width * element);
    };
    exchange();  // connections are made and buffers grow
    group.barrier();
    const std::int64_t begin = clock.mark();
    for (std::int64_t i = 0; i < sizes.calls; ++i) exchange();
    const double seconds =
        slowest(clock.seconds(begin, clock.mark()), group) / static_cast<double>(sizes.calls);
    clock.forget();
    ExchangeSpeed& speed = speeds.emplace_back();
    speed.bytes = ranks * width * element;
    speed.seconds = seconds;
    speed.algbw = static_cast<double>(speed.bytes) / std::max(seconds, 1e-9);
    speed.busbw = speed.algbw * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  }
  return speeds;
}

}  // namespace openmoe
