#include "parallel/host_tensor_group.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/base/check.h"

namespace openmoe {
namespace {

// What arrives is laid down by rank: piece r of `received_` came from rank r.
class HostTensorGroup : public TensorGroup {
 public:
  HostTensorGroup(Ops& ops, Communicator& group) : ops_(ops), group_(group) {
    for (auto* blocks : {&rows_, &out_begin_, &in_begin_})
      blocks->resize(static_cast<std::size_t>(group.size()));
  }

  std::int64_t size() const override { return group_.size(); }
  std::int64_t rank() const override { return group_.rank_in_group(); }

  void allocate_buffers(Arena& arena, std::int64_t sent_bytes,
                        std::int64_t received_bytes) override {
    const auto make = [&](const char* name, std::int64_t bytes) {
      return arena.allocate(name, MemoryCategory::exchange, DType::u8, {bytes});
    };
    sent_ = make("tensor group sent", sent_bytes);
    received_ = make("tensor group received", received_bytes);
  }

  void gather_rows(Tensor x) override {
    const std::int64_t rows = rows_by_rank(x);
    one_block_to_all(rows, rank() * rows);
    exchange(x.data, x.data, x.row_bytes());
  }

  void sum_rows(Tensor x) override {
    const std::int64_t rows = rows_by_rank(x);
    const Tensor own = own_rows(x);
    a_block_to_each(rows);
    exchange(x.data, room(received_, x.size_bytes()), x.row_bytes());
    add_in_order(own);
  }

  void rows_to_columns(Tensor columns, Tensor rows) override {
    const std::int64_t n = rows.size(0);
    check_columns(columns, rows, n * size());
    pack_columns(rows);
    a_block_to_each(n);
    exchange(sent_.data, columns.data, columns.row_bytes());
    // Own rows do not travel.
    std::memcpy(own_rows(columns).data,
                static_cast<char*>(sent_.data) + rank() * n * columns.row_bytes(),
                static_cast<std::size_t>(n * columns.row_bytes()));
  }

  void columns_to_rows(Tensor rows, Tensor columns) override {
    const std::int64_t n = rows.size(0);
    check_columns(columns, rows, n * size());
    a_block_to_each(n);
    exchange(columns.data, room(received_, rows.size_bytes()), columns.row_bytes());
    unpack_columns(rows, own_rows(columns));
  }

  void gather_columns(Tensor whole, Tensor columns) override {
    const std::int64_t n = whole.size(0);
    check_columns(columns, whole, n);
    one_block_to_all(n, 0);
    exchange(columns.data, room(received_, whole.size_bytes()), columns.row_bytes());
    unpack_columns(whole, columns);
  }

  void sum_columns(Tensor columns, Tensor partial) override {
    const std::int64_t n = partial.size(0);
    OPENMOE_CHECK(partial.dtype == DType::f32, name_of(partial.dtype));
    check_columns(columns, partial, n);
    pack_columns(partial);
    const std::int64_t width = columns.size(1), bytes = width * size_of(DType::f32);
    a_block_to_each(n);
    exchange(sent_.data, room(received_, partial.size_bytes()), bytes);
    const Tensor own = view(sent_, rank(), {n, width});
    add_in_order(own);
    if (columns.dtype == DType::f32)
      ops_.copy(columns, own);
    else
      ops_.convert(columns, own);
  }

  void sum(Tensor x) override {
    OPENMOE_CHECK(x.dtype == DType::f32 && x.device == Device::host, name_of(x.dtype));
    one_block_to_all(1, 0);
    exchange(x.data, room(received_, size() * x.size_bytes()), x.size_bytes());
    add_in_order(x);
  }

  void sum(std::span<double> values) override { group_.all_reduce_sum(values); }

  void combine(std::span<LogitSums> sums) override {
    const auto rows = static_cast<std::int64_t>(sums.size());
    all_sums_.resize(static_cast<std::size_t>(rows * size()));
    one_block_to_all(rows, 0);
    exchange(sums.data(), all_sums_.data(), sizeof(LogitSums));
    std::copy(sums.begin(), sums.end(), all_sums_.begin() + rank() * rows);
    for (std::int64_t i = 0; i < rows; ++i) {
      LogitSums total = all_sums_[static_cast<std::size_t>(i)];
      for (std::int64_t r = 1; r < size(); ++r)
        total = joined(total, all_sums_[static_cast<std::size_t>(r * rows + i)]);
      sums[static_cast<std::size_t>(i)] = total;
    }
  }

 private:
  // `b` is of higher ids than `a`.
  static LogitSums joined(const LogitSums& a, const LogitSums& b) {
    const double largest = std::max(a.largest, b.largest);
    const auto rescaled = [&](const LogitSums& part) {
      return part.sum == 0.0 ? 0.0 : part.sum * std::exp(part.largest - largest);
    };
    return {largest, rescaled(a) + rescaled(b), a.target + b.target,
            b.largest > a.largest ? b.argmax : a.argmax};
  }

  std::int64_t rows_by_rank(const Tensor& x) const {
    OPENMOE_CHECK(x.device == Device::host && x.size(0) % size() == 0, x.shape.to_string(),
                  " by rows over ", size(), " ranks");
    return x.size(0) / size();
  }
  void check_columns(const Tensor& columns, const Tensor& whole, std::int64_t rows) const {
    OPENMOE_CHECK(whole.device == Device::host && columns.device == Device::host &&
                      whole.shape.rank == 2 && columns.shape.rank == 2 && columns.size(0) == rows &&
                      columns.size(1) * size() == whole.size(1),
                  columns.shape.to_string(), " as columns of ", whole.shape.to_string(), " over ",
                  size(), " ranks");
  }
  static void* room(const Tensor& buffer, std::int64_t bytes) {
    OPENMOE_CHECK(bytes <= buffer.size_bytes(), bytes, " bytes in a buffer of ",
                  buffer.size_bytes());
    return buffer.data;
  }
  // Piece r of a buffer of f32 pieces of one shape.
  static Tensor view(const Tensor& buffer, std::int64_t r, const Shape& shape) {
    Tensor piece{buffer.data, DType::f32, Device::host, shape};
    piece.data = static_cast<char*>(buffer.data) + r * piece.size_bytes();
    return piece;
  }

  // The blocks of the next exchange, of `rows` rows each and laid down by rank where they arrive:
  // those that lie by rank here, or one that begins at row `begin`. None goes from a rank to
  // itself.
  void a_block_to_each(std::int64_t rows) {
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      rows_[r] = static_cast<std::int64_t>(r) == rank() ? 0 : rows;
      in_begin_[r] = out_begin_[r] = static_cast<std::int64_t>(r) * rows;
    }
  }
  void one_block_to_all(std::int64_t rows, std::int64_t begin) {
    a_block_to_each(rows);
    std::fill(out_begin_.begin(), out_begin_.end(), begin);
  }
  void exchange(const void* sent, void* received, std::int64_t bytes) {
    group_.all_to_all_rows(sent, {rows_, out_begin_}, received, {rows_, in_begin_}, bytes);
  }

  // own = the sum, in the order of ranks, of own and the received pieces of its shape.
  void add_in_order(Tensor own) {
    const std::int64_t count = own.num_elements(), ranks = size(), self = rank();
    float* const mine = own.as<float>();
    const float* const pieces = static_cast<const float*>(received_.data);
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < count; ++i) {
      float total = self == 0 ? mine[i] : pieces[i];
      for (std::int64_t r = 1; r < ranks; ++r) total += r == self ? mine[i] : pieces[r * count + i];
      mine[i] = total;
    }
  }

  // sent_ = the columns of each rank, one after the other.
  void pack_columns(const Tensor& rows) {
    const std::int64_t n = rows.size(0), ranks = size(), bytes = rows.row_bytes() / ranks;
    char* const to = static_cast<char*>(room(sent_, rows.size_bytes()));
    const char* const from = static_cast<const char*>(rows.data);
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t r = 0; r < ranks; ++r)
        std::memcpy(to + (r * n + i) * bytes, from + (i * ranks + r) * bytes,
                    static_cast<std::size_t>(bytes));
  }
  // The reverse, from received_ and this rank's own columns.
  void unpack_columns(const Tensor& rows, const Tensor& own) {
    const std::int64_t n = rows.size(0), ranks = size(), self = rank(),
                       bytes = rows.row_bytes() / ranks;
    char* const to = static_cast<char*>(rows.data);
    const char* const from = static_cast<const char*>(received_.data);
    const char* const mine = static_cast<const char*>(own.data);
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t r = 0; r < ranks; ++r)
        std::memcpy(to + (i * ranks + r) * bytes,
                    r == self ? mine + i * bytes : from + (r * n + i) * bytes,
                    static_cast<std::size_t>(bytes));
  }

  Ops& ops_;
  Communicator& group_;
  Tensor sent_, received_;
  std::vector<std::int64_t> rows_, out_begin_, in_begin_;  // per rank
  std::vector<LogitSums> all_sums_;
};

}  // namespace

std::unique_ptr<TensorGroup> make_host_tensor_group(Ops& ops, Communicator& group) {
  if (group.size() == 1) return std::make_unique<LocalTensorGroup>();
  return std::make_unique<HostTensorGroup>(ops, group);
}

}  // namespace openmoe
