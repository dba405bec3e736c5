#include "parallel/rank_tensor_group.h"

#include <algorithm>
#include <vector>

#include "core/base/check.h"

namespace openmoe {
namespace {

// What arrives is laid down by rank: piece r of `received_` came from rank r.
class RankTensorGroup : public TensorGroup {
 public:
  RankTensorGroup(Ops& ops, Communicator& tensors, Communicator& numbers)
      : ops_(ops), tensors_(tensors), numbers_(numbers) {
    for (auto* blocks : {&rows_, &out_begin_, &in_begin_})
      blocks->resize(static_cast<std::size_t>(numbers.size()));
  }

  std::int64_t size() const override { return numbers_.size(); }
  std::int64_t rank() const override { return numbers_.rank_in_group(); }

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
    exchange(x, x);
  }

  void sum_rows(Tensor x) override {
    const std::int64_t rows = rows_by_rank(x);
    a_block_to_each(rows);
    exchange(x, room(received_, DType::f32, x.shape));
    add_in_order(own_rows(x));
  }

  void rows_to_columns(Tensor columns, Tensor rows) override {
    const std::int64_t n = rows.size(0);
    check_columns(columns, rows, n * size());
    const Tensor packed = pack_columns(rows);
    a_block_to_each(n);
    exchange(packed, columns);
    ops_.copy(own_rows(columns), own_rows(packed));  // these do not travel
  }

  void columns_to_rows(Tensor rows, Tensor columns) override {
    const std::int64_t n = rows.size(0);
    check_columns(columns, rows, n * size());
    a_block_to_each(n);
    exchange(columns, room(received_, rows.dtype, {n * size(), columns.size(1)}));
    unpack_columns(rows, own_rows(columns));
  }

  void gather_columns(Tensor whole, Tensor columns) override {
    const std::int64_t n = whole.size(0);
    check_columns(columns, whole, n);
    one_block_to_all(n, 0);
    exchange(columns, room(received_, whole.dtype, {n * size(), columns.size(1)}));
    unpack_columns(whole, columns);
  }

  void sum_columns(Tensor columns, Tensor partial) override {
    const std::int64_t n = partial.size(0);
    OPENMOE_CHECK(partial.dtype == DType::f32, name_of(partial.dtype));
    check_columns(columns, partial, n);
    const Tensor packed = pack_columns(partial);
    a_block_to_each(n);
    exchange(packed, room(received_, DType::f32, packed.shape));
    const Tensor own = own_rows(packed);
    add_in_order(own);
    ops_.convert(columns, own);
  }

  void sum(Tensor x) override {
    OPENMOE_CHECK(x.dtype == DType::f32, name_of(x.dtype));
    const Tensor flat = x.reshaped({1, x.num_elements()});
    one_block_to_all(1, 0);
    exchange(flat, room(received_, DType::f32, {size(), x.num_elements()}));
    add_in_order(flat);
  }

  void sum(std::span<double> values) override { numbers_.all_reduce_sum(values); }

  void combine(std::span<LogitSums> sums) override {
    const auto rows = static_cast<std::int64_t>(sums.size());
    all_sums_.resize(static_cast<std::size_t>(rows * size()));
    one_block_to_all(rows, 0);
    numbers_.all_to_all_rows(sums.data(), {rows_, out_begin_}, all_sums_.data(), {rows_, in_begin_},
                             sizeof(LogitSums));
    std::copy(sums.begin(), sums.end(), all_sums_.begin() + rank() * rows);
    for (std::int64_t i = 0; i < rows; ++i) {
      LogitSums total = all_sums_[static_cast<std::size_t>(i)];
      for (std::int64_t r = 1; r < size(); ++r)
        total = joined(total, all_sums_[static_cast<std::size_t>(r * rows + i)]);
      sums[static_cast<std::size_t>(i)] = total;
    }
  }

 private:
  std::int64_t rows_by_rank(const Tensor& x) const {
    OPENMOE_CHECK(x.size(0) % size() == 0, x.shape.to_string(), " by rows over ", size(), " ranks");
    return x.size(0) / size();
  }
  void check_columns(const Tensor& columns, const Tensor& whole, std::int64_t rows) const {
    OPENMOE_CHECK(whole.shape.rank == 2 && columns.shape.rank == 2 && columns.size(0) == rows &&
                      columns.size(1) * size() == whole.size(1),
                  columns.shape.to_string(), " as columns of ", whole.shape.to_string(), " over ",
                  size(), " ranks");
  }
  // The beginning of a buffer, as a tensor.
  static Tensor room(const Tensor& buffer, DType dtype, const Shape& shape) {
    const Tensor view{buffer.data, dtype, buffer.device, shape};
    OPENMOE_CHECK(view.size_bytes() <= buffer.size_bytes(), view.size_bytes(),
                  " bytes in a buffer of ", buffer.size_bytes());
    return view;
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
  void exchange(const Tensor& sent, const Tensor& received) {
    tensors_.all_to_all_rows(sent.data, {rows_, out_begin_}, received.data, {rows_, in_begin_},
                             sent.row_bytes());
  }

  // own = the sum, in the order of ranks, of own and the received pieces of its shape.
  void add_in_order(const Tensor& own) {
    const std::int64_t count = own.num_elements();
    const Tensor pieces = room(received_, DType::f32, {size(), count}),
                 flat = own.reshaped({count});
    ops_.copy(pieces.rows(rank(), rank() + 1).reshaped({count}), flat);
    ops_.sum_pieces(flat, pieces);
  }

  // sent_ = the columns of each rank, one after the other: (P n, W/P).
  Tensor pack_columns(const Tensor& rows) {
    const std::int64_t n = rows.size(0), width = rows.size(1) / size();
    const Tensor packed = room(sent_, rows.dtype, {size(), n, width});
    ops_.swap_leading_axes(packed, rows.reshaped({n, size(), width}));
    return packed.reshaped({size() * n, width});
  }
  // The reverse, from received_ and this rank's own columns.
  void unpack_columns(const Tensor& rows, const Tensor& own) {
    const std::int64_t n = rows.size(0), width = own.size(1);
    const Tensor pieces = room(received_, rows.dtype, {size(), n, width});
    ops_.copy(own_rows(pieces).reshaped({n, width}), own);
    ops_.swap_leading_axes(rows.reshaped({n, size(), width}), pieces);
  }

  Ops& ops_;
  Communicator &tensors_, &numbers_;
  Tensor sent_, received_;
  std::vector<std::int64_t> rows_, out_begin_, in_begin_;  // per rank
  std::vector<LogitSums> all_sums_;
};

}  // namespace

std::unique_ptr<TensorGroup> make_tensor_group(Ops& ops, Communicator& tensors,
                                               Communicator& numbers) {
  if (numbers.size() == 1) return std::make_unique<LocalTensorGroup>();
  return std::make_unique<RankTensorGroup>(ops, tensors, numbers);
}

}  // namespace openmoe
