#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <exception>
#include <limits>
#include <map>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

// Owns one MPI communicator.
class MpiComm {
 public:
  MpiComm() = default;
  explicit MpiComm(MPI_Comm handle) : handle_(handle) {}
  MpiComm(MpiComm&& other) noexcept : handle_(std::exchange(other.handle_, MPI_COMM_NULL)) {}
  MpiComm& operator=(MpiComm&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~MpiComm() {
    // Freeing is collective. While an error unwinds this rank alone, the others are not here: the
    // job's end frees it.
    if (handle_ != MPI_COMM_NULL && std::uncaught_exceptions() == 0) MPI_Comm_free(&handle_);
  }
  MPI_Comm get() const { return handle_; }

 private:
  MPI_Comm handle_ = MPI_COMM_NULL;
};

// Owns the datatype of one row of bytes, so that counts are in rows and totals may pass 2^31 bytes.
class MpiRowType {
 public:
  MpiRowType() = default;
  explicit MpiRowType(MPI_Datatype handle) : handle_(handle) {}
  MpiRowType(MpiRowType&& other) noexcept
      : handle_(std::exchange(other.handle_, MPI_DATATYPE_NULL)) {}
  MpiRowType& operator=(MpiRowType&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~MpiRowType() {
    if (handle_ != MPI_DATATYPE_NULL) MPI_Type_free(&handle_);
  }
  MPI_Datatype get() const { return handle_; }

 private:
  MPI_Datatype handle_ = MPI_DATATYPE_NULL;
};

template <typename T>
MPI_Datatype mpi_type();
template <>
MPI_Datatype mpi_type<float>() {
  return MPI_FLOAT;
}
template <>
MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}
template <>
MPI_Datatype mpi_type<std::int64_t>() {
  return MPI_INT64_T;
}

// What an MPI call returned, and the line it was called on (std::source_location is not known to
// every compiler of today).
struct MpiStatus {
  MpiStatus(int returned, const char* its_file = __builtin_FILE(), int its_line = __builtin_LINE())
      : status(returned), file(its_file), line(its_line) {}
  int status;
  const char* file;
  int line;
};

// Turns a failed MPI call into an exception. `call` are the parts of a text that says what was
// asked; they are only put together on failure.
template <typename... Parts>
void check_mpi(const MpiStatus& result, const std::string& group, const Parts&... call) {
  if (result.status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> reason{};
  int length = 0;
  MPI_Error_string(result.status, reason.data(), &length);
  throw RuntimeFault(concat(call..., " failed on ", group, ": ", reason.data(), " (", result.file,
                            ":", result.line, ")"));
}

// "rank 1 of 4 (world ranks 1, 3, 5, 7)"; long groups are cut in the middle.
std::string describe_group(MPI_Comm comm, int rank, int size) {
  constexpr int kMaxListed = 8;
  MPI_Group group = MPI_GROUP_NULL;
  MPI_Group world = MPI_GROUP_NULL;
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::vector<int> world_ranks(ranks.size());
  for (int i = 0; i < size; ++i) ranks[static_cast<std::size_t>(i)] = i;
  const std::string self = concat("rank ", rank, " of ", size);
  check_mpi(MPI_Comm_group(comm, &group), self, "MPI_Comm_group");
  check_mpi(MPI_Comm_group(MPI_COMM_WORLD, &world), self, "MPI_Comm_group of the world");
  check_mpi(MPI_Group_translate_ranks(group, size, ranks.data(), world, world_ranks.data()), self,
            "MPI_Group_translate_ranks");
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  std::string list;
  for (int i = 0; i < size; ++i) {
    if (size > kMaxListed && i == kMaxListed - 1) {
      list += ", ...";
      i = size - 1;
    }
    list += (i > 0 ? ", " : "") + std::to_string(world_ranks[static_cast<std::size_t>(i)]);
  }
  return concat(self, " (world ranks ", list, ")");
}

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MpiComm comm, const MpiLimits& limits) : comm_(std::move(comm)), limits_(limits) {
    OPENMOE_CHECK(limits.all_reduce_piece_bytes >= 8 && limits.max_count >= 1 &&
                      limits.max_count <= std::numeric_limits<int>::max(),
                  limits.all_reduce_piece_bytes, ", ", limits.max_count);
    // The default handler would end the program without saying which call of ours it was.
    check_mpi(MPI_Comm_set_errhandler(comm_.get(), MPI_ERRORS_RETURN), "a new group",
              "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_size(comm_.get(), &size_), "a new group", "MPI_Comm_size");
    check_mpi(MPI_Comm_rank(comm_.get(), &rank_), "a new group", "MPI_Comm_rank");
    description_ = describe_group(comm_.get(), rank_, size_);
    for (auto& list : counts_) list.resize(static_cast<std::size_t>(size_));
  }

  int size() const override { return size_; }
  int rank_in_group() const override { return rank_; }
  std::string description() const override { return description_; }

  void all_reduce_sum(std::span<float> data) override { all_reduce(data, MPI_SUM, "sum of f32"); }
  void all_reduce_sum(std::span<double> data) override { all_reduce(data, MPI_SUM, "sum of f64"); }
  void all_reduce_sum(std::span<std::int64_t> data) override {
    all_reduce(data, MPI_SUM, "sum of i64");
  }
  void all_reduce_max(std::span<std::int64_t> data) override {
    all_reduce(data, MPI_MAX, "maximum of i64");
  }

  void all_to_all(std::span<const std::int64_t> sent, std::span<std::int64_t> received,
                  std::int64_t count) override {
    const auto total = static_cast<std::size_t>(size_ * count);
    OPENMOE_CHECK(sent.size() == total && received.size() == total, sent.size(), " and ",
                  received.size(), " elements for ", size_, " ranks x ", count);
    if (count == 0) return;
    const int n = to_int(count, "all_to_all count");
    check_mpi(
        MPI_Alltoall(sent.data(), n, MPI_INT64_T, received.data(), n, MPI_INT64_T, comm_.get()),
        description_, "MPI_Alltoall of ", count, " i64 per rank");
  }

  void all_to_all_rows(const void* sent, const RowBlocks& sent_blocks, void* received,
                       const RowBlocks& received_blocks, std::int64_t row_bytes) override {
    OPENMOE_CHECK(row_bytes > 0, row_bytes);
    const MPI_Datatype type = row_type(row_bytes);
    auto& [sent_counts, sent_offsets, received_counts, received_offsets] = counts_;
    fill_counts(sent_blocks, sent_counts, sent_offsets);
    fill_counts(received_blocks, received_counts, received_offsets);
    check_mpi(MPI_Alltoallv(sent, sent_counts.data(), sent_offsets.data(), type, received,
                            received_counts.data(), received_offsets.data(), type, comm_.get()),
              description_, "MPI_Alltoallv of rows of ", row_bytes, " bytes");
  }

  void start_all_to_all_rows(std::int64_t slot, const void* sent, const RowBlocks& sent_blocks,
                             void* received, const RowBlocks& received_blocks,
                             std::int64_t row_bytes) override {
    OPENMOE_CHECK(row_bytes > 0 && slot >= 0, row_bytes, " bytes, slot ", slot);
    while (std::ssize(exchanges_) <= slot) {
      exchanges_.emplace_back();
      for (auto& list : exchanges_.back().counts) list.resize(counts_[0].size());
    }
    RowExchange& exchange = exchanges_[static_cast<std::size_t>(slot)];
    OPENMOE_CHECK(exchange.request == MPI_REQUEST_NULL, "slot ", slot, " is in use");
    const MPI_Datatype type = row_type(row_bytes);
    auto& [sent_counts, sent_offsets, received_counts, received_offsets] = exchange.counts;
    fill_counts(sent_blocks, sent_counts, sent_offsets);
    fill_counts(received_blocks, received_counts, received_offsets);
    check_mpi(MPI_Ialltoallv(sent, sent_counts.data(), sent_offsets.data(), type, received,
                             received_counts.data(), received_offsets.data(), type, comm_.get(),
                             &exchange.request),
              description_, "MPI_Ialltoallv of rows of ", row_bytes, " bytes");
  }

  void wait_for_rows(std::int64_t slot) override {
    OPENMOE_CHECK(slot >= 0 && slot < std::ssize(exchanges_), "slot ", slot, " of ",
                  exchanges_.size());
    check_mpi(MPI_Wait(&exchanges_[static_cast<std::size_t>(slot)].request, MPI_STATUS_IGNORE),
              description_, "MPI_Wait for rows");
  }

  void reduce_scatter_sum(std::span<float> data, std::span<const std::int64_t> pieces) override {
    std::int64_t total = 0, own_begin = 0;
    for (std::size_t r = 0; r < pieces.size(); ++r) {
      if (static_cast<int>(r) == rank_) own_begin = total;
      total += pieces[r];
    }
    OPENMOE_CHECK(
        pieces.size() == counts_[0].size() && data.size() == static_cast<std::size_t>(total),
        data.size(), " elements for ", total, " in ", pieces.size(), " pieces for ", size_,
        " ranks");
    if (total > limits_.max_count) return all_reduce(data, MPI_SUM, "sum of f32");
    fill_counts({pieces, {}}, counts_[0], counts_[1]);
    check_mpi(MPI_Reduce_scatter(MPI_IN_PLACE, data.data(), counts_[0].data(), MPI_FLOAT, MPI_SUM,
                                 comm_.get()),
              description_, "MPI_Reduce_scatter of ", total, " f32");
    // In place, MPI leaves the result at the front.
    const auto own = static_cast<std::size_t>(pieces[static_cast<std::size_t>(rank_)]);
    if (own > 0) std::memmove(data.data() + own_begin, data.data(), own * sizeof(float));
  }

  void all_gather(std::span<float> data, std::span<const std::int64_t> pieces) override {
    gather_pieces(data, pieces, MPI_FLOAT, "f32");
  }
  // Bits that MPI only moves.
  void all_gather(std::span<BFloat16> data, std::span<const std::int64_t> pieces) override {
    gather_pieces(data, pieces, MPI_UINT16_T, "bf16");
  }

  template <typename T>
  void gather_pieces(std::span<T> data, std::span<const std::int64_t> pieces, MPI_Datatype type,
                     const char* type_name) {
    OPENMOE_CHECK(pieces.size() == counts_[0].size(), pieces.size(), " pieces for ", size_,
                  " ranks");
    std::int64_t total = 0;
    for (const std::int64_t count : pieces) total += count;
    OPENMOE_CHECK(data.size() == static_cast<std::size_t>(total), data.size(), " elements for ",
                  total, " in pieces");
    if (total > limits_.max_count) return broadcast_pieces(data.data(), pieces, type, type_name);
    fill_counts({pieces, {}}, counts_[0], counts_[1]);
    check_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, data.data(), counts_[0].data(),
                             counts_[1].data(), type, comm_.get()),
              description_, "MPI_Allgatherv of ", total, " ", type_name);
  }

  std::vector<std::string> all_gather(const std::string& bytes) override {
    const auto num_ranks = static_cast<std::size_t>(size_);
    const auto own_size = static_cast<std::int64_t>(bytes.size());
    std::vector<std::int64_t> sizes(num_ranks);
    check_mpi(MPI_Allgather(&own_size, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, comm_.get()),
              description_, "MPI_Allgather of sizes");
    std::vector<std::string> gathered(num_ranks);
    for (std::size_t r = 0; r < num_ranks; ++r)
      gathered[r].reserve(static_cast<std::size_t>(sizes[r]));
    // One round moves at most max_count bytes in total.
    const std::int64_t piece = std::max<std::int64_t>(1, limits_.max_count / size_);
    const std::int64_t longest = *std::max_element(sizes.begin(), sizes.end());
    std::string round;
    for (std::int64_t begin = 0; begin < longest; begin += piece)
      gather_round(bytes, sizes, begin, piece, round, gathered);
    return gathered;
  }

  void broadcast(std::string& bytes, int root) override {
    OPENMOE_CHECK(root >= 0 && root < size_, "root ", root, " of ", size_);
    auto total = static_cast<std::int64_t>(bytes.size());
    check_mpi(MPI_Bcast(&total, 1, MPI_INT64_T, root, comm_.get()), description_,
              "MPI_Bcast of a size");
    bytes.resize(static_cast<std::size_t>(total));
    for (std::int64_t begin = 0; begin < total; begin += limits_.max_count) {
      const auto count = static_cast<int>(std::min(limits_.max_count, total - begin));
      check_mpi(MPI_Bcast(bytes.data() + begin, count, MPI_BYTE, root, comm_.get()), description_,
                "MPI_Bcast of ", count, " bytes");
    }
  }

  void barrier() override { check_mpi(MPI_Barrier(comm_.get()), description_, "MPI_Barrier"); }

  std::unique_ptr<Communicator> split(int colour, int key) override {
    OPENMOE_CHECK(colour >= 0, "colour ", colour);
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_.get(), colour, key, &part), description_, "MPI_Comm_split");
    return std::make_unique<MpiCommunicator>(MpiComm(part), limits_);
  }

  void start_all_reduce_sum(std::span<float> data) override {
    for_pieces(data, [&](std::size_t begin, int count) {
      sums_.push_back(MPI_REQUEST_NULL);
      check_mpi(MPI_Iallreduce(MPI_IN_PLACE, data.data() + begin, count, MPI_FLOAT, MPI_SUM,
                               comm_.get(), &sums_.back()),
                description_, "MPI_Iallreduce, sum of f32, elements [", begin, ", ",
                begin + static_cast<std::size_t>(count), ") of ", data.size());
    });
  }

  void advance() override {
    int done = 0;
    check_mpi(MPI_Testall(static_cast<int>(sums_.size()), sums_.data(), &done, MPI_STATUSES_IGNORE),
              description_, "MPI_Testall of ", sums_.size(), " sums");
    for (RowExchange& exchange : exchanges_)
      check_mpi(MPI_Test(&exchange.request, &done, MPI_STATUS_IGNORE), description_,
                "MPI_Test of rows");
  }

  void wait_for_sums() override {
    check_mpi(MPI_Waitall(static_cast<int>(sums_.size()), sums_.data(), MPI_STATUSES_IGNORE),
              description_, "MPI_Waitall of ", sums_.size(), " sums");
    sums_.clear();
  }

 private:
  // Calls work(first element, count) for pieces that one call of the library takes.
  template <typename T, typename Work>
  void for_pieces(std::span<T> data, const Work& work) const {
    const std::size_t piece =
        std::min(static_cast<std::size_t>(limits_.all_reduce_piece_bytes) / sizeof(T),
                 static_cast<std::size_t>(limits_.max_count));
    for (std::size_t begin = 0; begin < data.size(); begin += piece)
      work(begin, static_cast<int>(std::min(piece, data.size() - begin)));
  }

  template <typename T>
  void all_reduce(std::span<T> data, MPI_Op op, const char* what) {
    for_pieces(data, [&](std::size_t begin, int count) {
      check_mpi(
          MPI_Allreduce(MPI_IN_PLACE, data.data() + begin, count, mpi_type<T>(), op, comm_.get()),
          description_, "MPI_Allreduce, ", what, ", elements [", begin, ", ",
          begin + static_cast<std::size_t>(count), ") of ", data.size());
    });
  }

  // An all-gather of more than one call can index.
  template <typename T>
  void broadcast_pieces(T* data, std::span<const std::int64_t> pieces, MPI_Datatype type,
                        const char* type_name) {
    for (int root = 0; root < size_; ++root) {
      const std::int64_t total = pieces[static_cast<std::size_t>(root)];
      for (std::int64_t begin = 0; begin < total; begin += limits_.max_count) {
        const auto count = static_cast<int>(std::min(limits_.max_count, total - begin));
        check_mpi(MPI_Bcast(data + begin, count, type, root, comm_.get()), description_,
                  "MPI_Bcast of ", count, " ", type_name);
      }
      data += total;
    }
  }

  // Bytes [begin, begin + piece) of every rank's string, as far as it reaches.
  void gather_round(const std::string& bytes, const std::vector<std::int64_t>& sizes,
                    std::int64_t begin, std::int64_t piece, std::string& round,
                    std::vector<std::string>& gathered) {
    std::vector<int>& counts = counts_[0];
    std::vector<int>& offsets = counts_[1];
    int total = 0;
    for (std::size_t r = 0; r < sizes.size(); ++r) {
      counts[r] = static_cast<int>(std::clamp<std::int64_t>(sizes[r] - begin, 0, piece));
      offsets[r] = total;
      total += counts[r];
    }
    round.resize(static_cast<std::size_t>(total));
    const int own = counts[static_cast<std::size_t>(rank_)];
    const char* own_bytes = own == 0 ? nullptr : bytes.data() + begin;
    check_mpi(MPI_Allgatherv(own_bytes, own, MPI_BYTE, round.data(), counts.data(), offsets.data(),
                             MPI_BYTE, comm_.get()),
              description_, "MPI_Allgatherv of ", total, " bytes");
    for (std::size_t r = 0; r < sizes.size(); ++r)
      gathered[r].append(round, static_cast<std::size_t>(offsets[r]),
                         static_cast<std::size_t>(counts[r]));
  }

  // The datatypes in use are few (one per row width), and making one allocates.
  MPI_Datatype row_type(std::int64_t row_bytes) {
    const auto found = row_types_.find(row_bytes);
    if (found != row_types_.end()) return found->second.get();
    const int count = to_int(row_bytes, "bytes of a row");
    MPI_Datatype type = MPI_DATATYPE_NULL;
    check_mpi(MPI_Type_contiguous(count, MPI_BYTE, &type), description_, "MPI_Type_contiguous");
    check_mpi(MPI_Type_commit(&type), description_, "MPI_Type_commit");
    return row_types_.emplace(row_bytes, MpiRowType(type)).first->second.get();
  }

  void fill_counts(const RowBlocks& blocks, std::vector<int>& counts, std::vector<int>& offsets) {
    const bool packed = blocks.row_offsets.empty();
    OPENMOE_CHECK(blocks.num_rows.size() == counts.size() &&
                      (packed || blocks.row_offsets.size() == counts.size()),
                  blocks.num_rows.size(), " and ", blocks.row_offsets.size(), " blocks for ", size_,
                  " ranks");
    std::int64_t next = 0;
    for (std::size_t r = 0; r < counts.size(); ++r) {
      counts[r] = to_int(blocks.num_rows[r], "rows of a block");
      offsets[r] = to_int(packed ? next : blocks.row_offsets[r], "first row of a block");
      next += blocks.num_rows[r];
    }
  }

  int to_int(std::int64_t value, const char* what) const {
    OPENMOE_CHECK(value >= 0, what, " ", value);
    if (value > limits_.max_count)
      throw RuntimeFault(concat(what, ": ", value, " is more than the ", limits_.max_count,
                                " that one MPI call takes, on ", description_));
    return static_cast<int>(value);
  }

  MpiComm comm_;
  MpiLimits limits_;
  int size_ = 0;
  int rank_ = 0;
  std::string description_;
  // Arguments of the calls with one count and offset per rank: sent counts, offsets, received
  // counts, offsets.
  std::array<std::vector<int>, 4> counts_;
  std::map<std::int64_t, MpiRowType> row_types_;
  std::vector<MPI_Request> sums_;  // under way
  // Of a slot; MPI reads the counts until the exchange is done, so they must not move.
  struct RowExchange {
    std::array<std::vector<int>, 4> counts;  // as counts_
    MPI_Request request = MPI_REQUEST_NULL;
  };
  std::deque<RowExchange> exchanges_;
};

}  // namespace

std::unique_ptr<Communicator> make_world_communicator(const MpiLimits& limits) {
  MPI_Comm world = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "the world", "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(MpiComm(world), limits);
}

}  // namespace openmoe
