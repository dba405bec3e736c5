// NCCL over MPI, on 1, 2 and 3 ranks: values of every verb, and disagreements between ranks.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "test/cuda_emulation/support.h"
#include "test/support/catch.h"
#include "test/support/mpi_world.h"
#include "test/support/ranks.h"

using namespace cuda_emulation::test;
using Catch::Matchers::Contains;
using openmoe::test::mpi;

namespace {

// All ranks of the world, one device each.
struct World {
  World() {
    auto& world = mpi().world();
    rank = world.rank_in_group();
    size = world.size();
    require(cudaSetDevice(rank));
    ncclUniqueId id{};
    std::string bytes(sizeof id, '\0');
    if (rank == 0) {
      REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
      std::memcpy(bytes.data(), &id, sizeof id);
    }
    world.broadcast(bytes, 0);
    std::memcpy(&id, bytes.data(), sizeof id);
    REQUIRE(ncclCommInitRank(&comm, size, id, rank) == ncclSuccess);
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  ~World() {
    cudaStreamSynchronize(stream);
    ncclCommDestroy(comm);
    cudaStreamDestroy(stream);
  }
  int rank = 0, size = 1;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
};

template <typename T>
std::vector<T> result(const World& world, const DeviceBuffer<T>& buffer) {
  require(cudaStreamSynchronize(world.stream));
  return buffer.read();
}

std::vector<float> ramp(int n, int salt) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (int i = 0; i < n; ++i) x[static_cast<std::size_t>(i)] = static_cast<float>(i + 10 * salt);
  return x;
}

}  // namespace

TEST_CASE("reductions") {
  const World w;
  const int n = 11;
  const DeviceBuffer<float> x(ramp(n, w.rank)), y(n);
  REQUIRE(ncclAllReduce(x.data(), y.data(), n, ncclFloat32, ncclSum, w.comm, w.stream) ==
          ncclSuccess);
  const auto sum = result(w, y);
  for (int i = 0; i < n; ++i)
    REQUIRE_ALL_RANKS(sum[i] == static_cast<float>(w.size * i + 5 * w.size * (w.size - 1)));
  REQUIRE(ncclAllReduce(x.data(), y.data(), n, ncclFloat32, ncclMax, w.comm, w.stream) ==
          ncclSuccess);
  REQUIRE_ALL_RANKS(result(w, y)[3] == static_cast<float>(3 + 10 * (w.size - 1)));
  // In place, bf16: every partial sum is rounded.
  const DeviceBuffer<__nv_bfloat16> z(
      std::vector<__nv_bfloat16>(4, __nv_bfloat16(w.rank == 0 ? 256.0f : 1.0f)));
  REQUIRE(ncclAllReduce(z.data(), z.data(), 4, ncclBfloat16, ncclSum, w.comm, w.stream) ==
          ncclSuccess);
  REQUIRE_ALL_RANKS(__bfloat162float(result(w, z)[0]) == 256.0f);
  // One block of the sum to each rank.
  const DeviceBuffer<float> blocks(ramp(2 * w.size, w.rank)), mine(2);
  REQUIRE(ncclReduceScatter(blocks.data(), mine.data(), 2, ncclFloat32, ncclSum, w.comm,
                            w.stream) == ncclSuccess);
  REQUIRE_ALL_RANKS(result(w, mine)[1] ==
                    static_cast<float>(w.size * (2 * w.rank + 1) + 5 * w.size * (w.size - 1)));
}

TEST_CASE("gathers and broadcasts") {
  const World w;
  const DeviceBuffer<float> x(ramp(3, w.rank)), all(3 * w.size);
  REQUIRE(ncclAllGather(x.data(), all.data(), 3, ncclFloat32, w.comm, w.stream) == ncclSuccess);
  const auto gathered = result(w, all);
  for (int r = 0; r < w.size; ++r)
    REQUIRE_ALL_RANKS(gathered[3 * r + 2] == static_cast<float>(2 + 10 * r));
  REQUIRE(ncclBroadcast(x.data(), x.data(), 3, ncclFloat32, w.size - 1, w.comm, w.stream) ==
          ncclSuccess);
  REQUIRE_ALL_RANKS(result(w, x)[1] == static_cast<float>(1 + 10 * (w.size - 1)));
}

TEST_CASE("all-to-all of uneven blocks by grouped messages") {
  const World w;
  // Rank r sends s + 1 elements to rank s; to itself too.
  std::vector<float> sent;
  for (int s = 0; s < w.size; ++s)
    for (int i = 0; i <= s; ++i) sent.push_back(static_cast<float>(100 * w.rank + 10 * s + i));
  const DeviceBuffer<float> x(sent), y(static_cast<std::size_t>(w.size * (w.rank + 1)));
  REQUIRE(ncclGroupStart() == ncclSuccess);
  int at = 0;
  for (int peer = 0; peer < w.size; ++peer) {
    REQUIRE(ncclSend(x.data() + at, static_cast<std::size_t>(peer + 1), ncclFloat32, peer, w.comm,
                     w.stream) == ncclSuccess);
    REQUIRE(ncclRecv(y.data() + peer * (w.rank + 1), static_cast<std::size_t>(w.rank + 1),
                     ncclFloat32, peer, w.comm, w.stream) == ncclSuccess);
    at += peer + 1;
  }
  REQUIRE(ncclGroupEnd() == ncclSuccess);
  const auto received = result(w, y);
  for (int peer = 0; peer < w.size; ++peer)
    for (int i = 0; i <= w.rank; ++i)
      REQUIRE_ALL_RANKS(received[peer * (w.rank + 1) + i] ==
                        static_cast<float>(100 * peer + 10 * w.rank + i));
}

TEST_CASE("what NCCL and a device would punish", "[accesses]") {
  const World w;
  const DeviceBuffer<float> x(ramp(8, w.rank)), y(8), fresh(8);
  std::vector<float> host(8, 1.0f);
  const auto reduce = [&](const void* from, void* to, std::size_t n) {
    return ncclAllReduce(from, to, n, ncclFloat32, ncclSum, w.comm, w.stream);
  };
  REQUIRE_ALL_RANKS(violation_of([&] {
                      reduce(host.data(), y.data(), 8);
                    }).find("a host pointer") != std::string::npos);
  REQUIRE_ALL_RANKS(violation_of([&] {
                      reduce(fresh.data(), y.data(), 8);
                    }).find("nothing has written") != std::string::npos);
  REQUIRE_ALL_RANKS(violation_of([&] {
                      reduce(x.data(), y.data(), 9);
                    }).find("ncclAllReduce: 36 bytes") != std::string::npos);
  REQUIRE_ALL_RANKS(violation_of([&] { reduce(x.data(), x.data() + 1, 4); }).find("overlap") !=
                    std::string::npos);
  CHECK(ncclAllReduce(x.data(), y.data(), 8, ncclFloat16, ncclSum, w.comm, w.stream) ==
        ncclInvalidArgument);
  CHECK(ncclSend(x.data(), 8, ncclFloat32, w.size, w.comm, w.stream) == ncclInvalidArgument);
  CHECK(ncclGroupEnd() == ncclInvalidUsage);
  // The result is not ordered before work on another stream.
  REQUIRE(reduce(x.data(), y.data(), 8) == ncclSuccess);
  REQUIRE_ALL_RANKS(violation_of([&] { y.read(); }).find("is not ordered after ncclAllReduce") !=
                    std::string::npos);
  if (w.size == 1) return;
  REQUIRE_ALL_RANKS(violation_of([&] {
                      reduce(x.data(), y.data(), w.rank == 0 ? 8 : 4);
                    }).find("ranks disagree") != std::string::npos);
  REQUIRE_ALL_RANKS(violation_of([&] {
                      if (w.rank == 0)
                        reduce(x.data(), y.data(), 8);
                      else
                        ncclBroadcast(x.data(), y.data(), 8, ncclFloat32, 0, w.comm, w.stream);
                    }).find("ranks disagree") != std::string::npos);
}

TEST_CASE("messages without a match, and of another size") {
  const World w;
  const DeviceBuffer<float> x(ramp(8, w.rank)), y(8);
  if (w.size == 1) {
    CHECK_THAT(violation_of([&] { ncclSend(x.data(), 8, ncclFloat32, 0, w.comm, w.stream); }),
               Contains("hangs"));
    return;
  }
  const int next = (w.rank + 1) % w.size, before = (w.rank + w.size - 1) % w.size;
  const std::string uneven = violation_of([&] {
    ncclGroupStart();
    ncclSend(x.data(), 8, ncclFloat32, next, w.comm, w.stream);
    ncclRecv(y.data(), 7, ncclFloat32, before, w.comm, w.stream);
    ncclGroupEnd();
  });
  REQUIRE_ALL_RANKS(uneven.find("sends 32 bytes") != std::string::npos &&
                    uneven.find("receives 28 bytes") != std::string::npos);
  setenv("OPENMOE_EMULATION_TIMEOUT_S", "1", 1);
  const std::string alone =
      violation_of([&] { ncclSend(x.data(), 8, ncclFloat32, next, w.comm, w.stream); });
  unsetenv("OPENMOE_EMULATION_TIMEOUT_S");
  REQUIRE_ALL_RANKS(alone.find("hangs") != std::string::npos);
}

TEST_CASE("two ranks on one device are refused") {
  const World w;
  if (w.size == 1) return;
  require(cudaSetDevice(0));
  ncclUniqueId id{};
  std::string bytes(sizeof id, '\0');
  if (w.rank == 0) {
    REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
    std::memcpy(bytes.data(), &id, sizeof id);
  }
  mpi().world().broadcast(bytes, 0);
  std::memcpy(&id, bytes.data(), sizeof id);
  ncclComm_t comm = nullptr;
  CHECK(ncclCommInitRank(&comm, w.size, id, w.rank) == ncclInvalidUsage);
  CHECK_THAT(ncclGetLastError(nullptr), Contains("ranks 0 and 1 are both on device 0"));
  require(cudaSetDevice(w.rank));
}
