// The verbs of MpiCommunicator and SelfCommunicator. Sums are of integers small enough to be exact
// in the type, so that the expected result is known to the bit on any number of ranks.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "parallel/mpi_communicator.h"
#include "test/support/ranks.h"

namespace openmoe::test {
namespace {

// Element i of rank r: an integer in [-1000, 1000], different for neighbours and ranks.
template <typename T>
T element(int rank, std::size_t i) {
  return static_cast<T>(
      static_cast<std::int64_t>((i * 31 + static_cast<std::size_t>(rank) * 977) % 2001) - 1000);
}

template <typename T>
bool sums_exactly(Communicator& comm, std::size_t n) {
  std::vector<T> data(n);
  for (std::size_t i = 0; i < n; ++i) data[i] = element<T>(comm.rank_in_group(), i);
  comm.all_reduce_sum(std::span<T>(data));
  for (std::size_t i = 0; i < n; ++i) {
    T expected = 0;
    for (int r = 0; r < comm.size(); ++r) expected += element<T>(r, i);
    if (data[i] != expected) return false;
  }
  return true;
}

bool takes_maximum(Communicator& comm, std::size_t n) {
  std::vector<std::int64_t> data(n);
  for (std::size_t i = 0; i < n; ++i) data[i] = element<std::int64_t>(comm.rank_in_group(), i);
  comm.all_reduce_max(data);
  for (std::size_t i = 0; i < n; ++i) {
    std::int64_t expected = element<std::int64_t>(0, i);
    for (int r = 1; r < comm.size(); ++r)
      expected = std::max(expected, element<std::int64_t>(r, i));
    if (data[i] != expected) return false;
  }
  return true;
}

// Rows that `from` sends to `to` in the tests of variable exchange; some pairs exchange nothing.
std::int64_t rows_between(int from, int to) {
  return (from * 3 + to * 5) % 4 * 7;
}

// One byte of row `row` that `from` sends to `to`.
char stamp(int from, int to, std::int64_t row, std::int64_t byte) {
  return static_cast<char>(from * 50 + to * 17 + row * 3 + byte * 11);
}

struct VariableExchange {
  std::vector<std::int64_t> counts, offsets;
  std::vector<char> bytes;

  // With `gap` rows of 0x5a before each block; reversed puts the blocks of the last ranks first.
  VariableExchange(const std::vector<std::int64_t>& rows, std::int64_t row_bytes, std::int64_t gap,
                   bool reversed)
      : counts(rows), offsets(rows.size()) {
    std::int64_t next = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t r = reversed ? rows.size() - 1 - i : i;
      offsets[r] = next + gap;
      next = offsets[r] + counts[r];
    }
    bytes.assign(static_cast<std::size_t>(next * row_bytes), 0x5a);
  }
};

bool exchanges_rows(Communicator& comm, std::int64_t row_bytes, std::int64_t gap, bool reversed) {
  const int self = comm.rank_in_group();
  std::vector<std::int64_t> send_rows, receive_rows;
  for (int r = 0; r < comm.size(); ++r) {
    send_rows.push_back(rows_between(self, r));
    receive_rows.push_back(rows_between(r, self));
  }
  VariableExchange sent(send_rows, row_bytes, gap, reversed);
  VariableExchange received(receive_rows, row_bytes, gap, !reversed);
  for (int r = 0; r < comm.size(); ++r)
    for (std::int64_t row = 0; row < rows_between(self, r); ++row)
      for (std::int64_t b = 0; b < row_bytes; ++b)
        sent.bytes[static_cast<std::size_t>(
            (sent.offsets[static_cast<std::size_t>(r)] + row) * row_bytes + b)] =
            stamp(self, r, row, b);
  VariableExchange expected = received;
  for (int r = 0; r < comm.size(); ++r)
    for (std::int64_t row = 0; row < rows_between(r, self); ++row)
      for (std::int64_t b = 0; b < row_bytes; ++b)
        expected.bytes[static_cast<std::size_t>(
            (received.offsets[static_cast<std::size_t>(r)] + row) * row_bytes + b)] =
            stamp(r, self, row, b);
  comm.all_to_all_rows(sent.bytes.data(), {sent.counts, sent.offsets}, received.bytes.data(),
                       {received.counts, received.offsets}, row_bytes);
  return received.bytes == expected.bytes;
}

// Pieces of `longest`, longest - 1, ... elements, from some rank on empty.
template <typename T>
bool gathers_pieces(Communicator& comm, std::int64_t longest) {
  std::vector<std::int64_t> counts;
  std::vector<T> data, expected;
  for (int r = 0; r < comm.size(); ++r) {
    counts.push_back(std::max<std::int64_t>(0, longest - r));
    for (std::int64_t i = 0; i < counts.back(); ++i) {
      expected.push_back(T(element<float>(r, static_cast<std::size_t>(i))));
      data.push_back(r == comm.rank_in_group() ? expected.back() : T(-7.5f));
    }
  }
  comm.all_gather(std::span<T>(data), counts);
  return std::equal(data.begin(), data.end(), expected.begin(),
                    [](T a, T b) { return static_cast<float>(a) == static_cast<float>(b); });
}

// The same expectations of any Communicator.
void check_verbs(Communicator& comm) {
  for (const std::size_t n : {0u, 1u, 2u, 3u, 1000u, 1025u}) {
    INFO("elements: " << n);
    REQUIRE_ALL_RANKS(sums_exactly<float>(comm, n));
    REQUIRE_ALL_RANKS(sums_exactly<double>(comm, n));
    REQUIRE_ALL_RANKS(sums_exactly<std::int64_t>(comm, n));
    REQUIRE_ALL_RANKS(takes_maximum(comm, n));
  }
  for (const std::int64_t row_bytes : {1, 4, 260})
    for (const std::int64_t gap : {0, 2})
      for (const bool reversed : {false, true})
        REQUIRE_ALL_RANKS(exchanges_rows(comm, row_bytes, gap, reversed));

  const int self = comm.rank_in_group();
  for (const std::int64_t count : {0, 1, 5}) {
    std::vector<std::int64_t> sent, received(static_cast<std::size_t>(comm.size() * count), -1),
        expected;
    for (int r = 0; r < comm.size(); ++r)
      for (std::int64_t i = 0; i < count; ++i) {
        sent.push_back(self * 10000 + r * 100 + i);
        expected.push_back(r * 10000 + self * 100 + i);
      }
    comm.all_to_all(sent, received, count);
    REQUIRE_ALL_RANKS(received == expected);
  }

  for (const std::int64_t longest : {0, 1, 3, 1000}) {
    REQUIRE_ALL_RANKS(gathers_pieces<float>(comm, longest));
    REQUIRE_ALL_RANKS(gathers_pieces<BFloat16>(comm, longest));
  }

  const auto text_of = [](int r) {
    return std::string(static_cast<std::size_t>(r % 3 * 9), static_cast<char>('a' + r));
  };
  const std::vector<std::string> texts = comm.all_gather(text_of(self));
  bool gathered = static_cast<int>(texts.size()) == comm.size();
  for (int r = 0; gathered && r < comm.size(); ++r)
    gathered = texts[static_cast<std::size_t>(r)] == text_of(r);
  REQUIRE_ALL_RANKS(gathered);

  // As many checks in every group, since all ranks of the world vote on each.
  for (int turn = 0; turn < mpi().world_size(); ++turn)
    for (const std::size_t length : {0u, 1u, 100u}) {
      const int root = turn % comm.size();
      std::string bytes =
          self == root ? std::string(length, static_cast<char>('A' + root)) : "something else";
      comm.broadcast(bytes, root);
      REQUIRE_ALL_RANKS(bytes == std::string(length, static_cast<char>('A' + root)));
    }
  comm.barrier();
}

}  // namespace

TEST_CASE("every verb of the world communicator") {
  check_verbs(mpi().world());
}

TEST_CASE("every verb of the self communicator") {
  const auto self = make_self_communicator();
  REQUIRE(self->size() == 1);
  check_verbs(*self);
  check_verbs(*self->split(3, 0));
}

TEST_CASE("results do not depend on how a verb is cut into MPI calls") {
  const MpiLimits tiny{.all_reduce_piece_bytes = 24, .max_count = 40};
  check_verbs(*make_world_communicator({.all_reduce_piece_bytes = 24, .max_count = 1 << 20}));
  const auto comm = make_world_communicator(tiny);
  std::string bytes = comm->rank_in_group() == 0 ? std::string(1001, 'x') + "end" : "";
  comm->broadcast(bytes, 0);
  REQUIRE_ALL_RANKS(bytes == std::string(1001, 'x') + "end");
  const auto texts =
      comm->all_gather(std::string(static_cast<std::size_t>(77 + comm->rank_in_group()), 'y'));
  bool same = true;
  for (std::size_t r = 0; r < texts.size(); ++r)
    same = same && texts[r] == std::string(77 + r, 'y');
  REQUIRE_ALL_RANKS(same);
  for (const std::int64_t longest : {3, 40, 41, 100}) {
    REQUIRE_ALL_RANKS(gathers_pieces<float>(*comm, longest));
    REQUIRE_ALL_RANKS(gathers_pieces<BFloat16>(*comm, longest));
  }
}

TEST_CASE("an all-reduce that crosses piece boundaries") {
  Communicator& world = mpi().world();
  const std::size_t piece =
      static_cast<std::size_t>(MpiLimits{}.all_reduce_piece_bytes) / sizeof(float);
  for (const std::size_t n : {piece - 1, piece, piece + 1, 3 * piece + 17}) {
    INFO("elements: " << n);
    REQUIRE_ALL_RANKS(sums_exactly<float>(world, n));
  }
  REQUIRE_ALL_RANKS(sums_exactly<double>(world, piece + 5));
}

TEST_CASE("an all-reduce of values that round has the same bits on every rank and every time") {
  Communicator& world = mpi().world();
  for (const std::size_t n : {5u, 4001u, 600001u}) {
    std::vector<float> first(n), second(n);
    for (std::size_t i = 0; i < n; ++i)
      first[i] = second[i] =
          1.0f / static_cast<float>(static_cast<int>(i % 997) + 3 * world.rank_in_group() + 1);
    world.all_reduce_sum(std::span<float>(first));
    world.all_reduce_sum(std::span<float>(second));
    REQUIRE_ALL_RANKS(first == second);
    std::string of_root(reinterpret_cast<const char*>(first.data()), n * sizeof(float));
    const std::string here = of_root;
    world.broadcast(of_root, 0);
    REQUIRE_ALL_RANKS(here == of_root);
  }
}

TEST_CASE("split makes groups by colour and orders them by key") {
  Communicator& world = mpi().world();
  const int self = world.rank_in_group();
  const int size = world.size();
  const auto parity = world.split(self % 2, -self);  // the last rank first
  REQUIRE_ALL_RANKS(parity->size() == (size - self % 2 + 1) / 2);
  std::vector<std::string> members = parity->all_gather(std::to_string(self));
  bool ordered = true;
  for (std::size_t i = 0; i + 1 < members.size(); ++i)
    ordered = ordered && std::stoi(members[i]) == std::stoi(members[i + 1]) + 2;
  REQUIRE_ALL_RANKS(ordered);
  check_verbs(*parity);
  const auto alone = parity->split(self, 0);
  REQUIRE_ALL_RANKS(alone->size() == 1);
  check_verbs(*alone);
  REQUIRE_ALL_RANKS(alone->description() ==
                    "rank 0 of 1 (world ranks " + std::to_string(self) + ")");
}

// Hidden, since it needs 2 GiB and up to half a minute of page faults:
// scripts/mpirun.sh -np 2 build/release/test/test_communicator "[large]"
TEST_CASE("rows of one exchange may pass 2^31 bytes", "[.large]") {
  Communicator& world = mpi().world();
  const std::int64_t row_bytes = 1 << 20;
  const std::int64_t num_rows = 2050;
  const int self = world.rank_in_group();
  const int last = world.size() - 1;
  const auto byte_at = [](char* data, std::int64_t row) -> char& {
    return data[row * (1 << 20) + row % 1000];
  };
  // calloc: the untouched pages of the sender cost nothing.
  const std::unique_ptr<char, decltype(&std::free)> sent(
      self == 0 ? static_cast<char*>(std::calloc(num_rows, row_bytes)) : nullptr, &std::free);
  const std::unique_ptr<char, decltype(&std::free)> received(
      self == last ? static_cast<char*>(std::calloc(num_rows, row_bytes)) : nullptr, &std::free);
  std::vector<std::int64_t> send_rows(static_cast<std::size_t>(world.size())),
      receive_rows(send_rows);
  if (self == 0) {
    send_rows[static_cast<std::size_t>(last)] = num_rows;
    for (std::int64_t row = 0; row < num_rows; row += 41)
      byte_at(sent.get(), row) = static_cast<char>(1 + row % 100);
  }
  if (self == last) receive_rows[0] = num_rows;
  world.all_to_all_rows(sent.get(), {send_rows, {}}, received.get(), {receive_rows, {}}, row_bytes);
  bool right = true;
  if (self == last)
    for (std::int64_t row = 0; row < num_rows; ++row)
      right = right && byte_at(received.get(), row) ==
                           (row % 41 == 0 ? static_cast<char>(1 + row % 100) : 0);
  REQUIRE_ALL_RANKS(right);
}

TEST_CASE("a count that MPI cannot take is refused with the numbers") {
  const auto comm = make_world_communicator({.all_reduce_piece_bytes = 1024, .max_count = 10});
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm->size()), 11);
  std::vector<char> buffer(static_cast<std::size_t>(11 * comm->size()));
  const std::string message = message_of<RuntimeFault>([&] {
    comm->all_to_all_rows(buffer.data(), {rows, {}}, buffer.data(), {rows, {}}, 1);
  });
  CAPTURE(message);
  REQUIRE_ALL_RANKS(message.find("11 is more than the 10") != std::string::npos);
  REQUIRE_ALL_RANKS(message.find(comm->description()) != std::string::npos);
}

TEST_CASE("a failed MPI call names the call, the place and the group") {
  Communicator& world = mpi().world();
  const bool sends = world.rank_in_group() == 0;
  const bool receives = world.rank_in_group() == world.size() - 1;
  // Of two ranks only, since MPI does not say what the others of a failed collective do.
  const auto comm = world.split(sends || receives ? 0 : 1, world.rank_in_group());
  if (!sends && !receives) return;
  // Two rows arrive where one was announced: MPI reports the truncation on the receiving side.
  const auto num_ranks = static_cast<std::size_t>(comm->size());
  std::vector<std::int64_t> send_rows(num_ranks), receive_rows(num_ranks);
  if (sends) send_rows[num_ranks - 1] = 2;
  if (receives) receive_rows[0] = 1;
  std::vector<char> sent(64), received(64);
  const std::string message = message_of<RuntimeFault>([&] {
    comm->all_to_all_rows(sent.data(), {send_rows, {}}, received.data(), {receive_rows, {}}, 8);
  });
  CAPTURE(message);
  if (!receives) return;
  CHECK(message.find("MPI_Alltoallv of rows of 8 bytes failed on rank") != std::string::npos);
  CHECK(message.find("mpi_communicator.cpp:") != std::string::npos);
  CHECK(message.find(comm->description()) != std::string::npos);
}

}  // namespace openmoe::test
