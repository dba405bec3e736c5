#include "parallel/row_transport.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

using Counts = std::vector<std::int64_t>;

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

class DirectTransport : public RowTransport {
 public:
  explicit DirectTransport(Communicator& group) : group_(group) {}
  void allocate_buffers(Arena&, std::span<const std::int64_t>, std::int64_t) override {}
  void start(std::int64_t slot, Tensor sent, const RowBlocks& sent_blocks, Tensor received,
             const RowBlocks& received_blocks) override {
    group_.start_all_to_all_rows(slot, sent.data, sent_blocks, received.data, received_blocks,
                                 sent.row_bytes());
  }
  void finish(std::int64_t slot, Tensor, const RowBlocks&) override { group_.wait_for_rows(slot); }
  void advance() override { group_.advance(); }

 private:
  Communicator& group_;
};

// A kind that brings rows in order before and after they travel.
class BufferedTransport : public RowTransport {
 protected:
  BufferedTransport(Ops& ops, const Communicator& group) : ops_(ops) {
    stretches_.reserve(static_cast<std::size_t>(group.size()));  // more are never noted
  }

  // Of one slot.
  struct Buffers {
    Tensor out, in;
  };
  // The first rows of a buffer, as those of `like`.
  static Tensor rows_in(const Tensor& buffer, std::int64_t rows, const Tensor& like) {
    const Tensor view{buffer.data, like.dtype, buffer.device, {rows, like.size(1)}};
    OPENMOE_CHECK(view.size_bytes() <= buffer.size_bytes(), rows, " rows of ", like.row_bytes(),
                  " bytes in a buffer of ", buffer.size_bytes());
    return view;
  }
  void make_buffers(Arena& arena, std::int64_t rows, std::int64_t row_bytes) {
    const auto make = [&](const char* name) {
      return arena.allocate(name, MemoryCategory::exchange, DType::u8, {rows * row_bytes});
    };
    slots_.push_back({make("rows to send"), make("rows received")});
  }
  const Buffers& buffers(std::int64_t slot) const {
    return slots_.at(static_cast<std::size_t>(slot));
  }

  // Stretches are noted one by one and copied together.
  void note(std::int64_t to, std::int64_t from, std::int64_t rows) {
    if (rows > 0) stretches_.push_back({to, from, rows});
  }
  void copy_noted(Tensor to, Tensor from) {
    ops_.copy_rows(to, from, stretches_);
    stretches_.clear();
  }

  Ops& ops_;
  std::vector<Buffers> slots_;
  std::vector<RowStretch> stretches_;
};

class FixedCapacityTransport : public BufferedTransport {
 public:
  FixedCapacityTransport(Ops& ops, Communicator& group)
      : BufferedTransport(ops, group),
        group_(group),
        counts_(static_cast<std::size_t>(group.size())) {}

  void allocate_buffers(Arena& arena, std::span<const std::int64_t> rows_per_pair,
                        std::int64_t row_bytes) override {
    slots_.clear();
    capacities_.assign(rows_per_pair.begin(), rows_per_pair.end());
    for (const std::int64_t capacity : capacities_)
      make_buffers(arena, capacity * (group_.size() - 1), row_bytes);
  }

  void start(std::int64_t slot, Tensor sent, const RowBlocks& sent_blocks, Tensor,
             const RowBlocks&) override {
    const std::int64_t rows = fill_counts(slot);
    std::int64_t place = 0;
    for (std::size_t r = 0; r < counts_.size(); ++r) {
      OPENMOE_CHECK(sent_blocks.num_rows[r] <= counts_[r], sent_blocks.num_rows[r], " rows for ",
                    counts_[r]);
      note(place, sent_blocks.row_offsets[r], sent_blocks.num_rows[r]);
      place += counts_[r];
    }
    const Tensor out = rows_in(buffers(slot).out, rows, sent);
    copy_noted(out, sent);
    group_.start_all_to_all_rows(slot, out.data, {counts_, {}},
                                 rows_in(buffers(slot).in, rows, sent).data, {counts_, {}},
                                 sent.row_bytes());
  }

  void finish(std::int64_t slot, Tensor received, const RowBlocks& received_blocks) override {
    group_.wait_for_rows(slot);
    const std::int64_t rows = fill_counts(slot);
    std::int64_t place = 0;
    for (std::size_t r = 0; r < counts_.size(); ++r) {
      note(received_blocks.row_offsets[r], place, received_blocks.num_rows[r]);
      place += counts_[r];
    }
    copy_noted(received, rows_in(buffers(slot).in, rows, received));
  }
  void advance() override { group_.advance(); }

 private:
  // Rows from or to each rank; returns their sum.
  std::int64_t fill_counts(std::int64_t slot) {
    const std::int64_t capacity = capacities_.at(static_cast<std::size_t>(slot));
    std::fill(counts_.begin(), counts_.end(), capacity);
    counts_[static_cast<std::size_t>(group_.rank_in_group())] = 0;
    return capacity * (group_.size() - 1);
  }

  Communicator& group_;
  Counts capacities_;  // rows of a block, by slot
  Counts counts_;
};

// Rank k n + j of the group is rank j of node k, of m nodes of n ranks.
class TwoLevelTransport : public BufferedTransport {
 public:
  TwoLevelTransport(Ops& ops, Communicator& group, std::int64_t ranks_per_node)
      : BufferedTransport(ops, group), n_(ranks_per_node), m_(group.size() / ranks_per_node) {
    OPENMOE_CHECK(n_ >= 1 && n_ * m_ == group.size(), group.size(), " ranks on nodes of ", n_);
    const int rank = group.rank_in_group(), n = static_cast<int>(n_);
    node_ = group.split(rank / n, rank % n);
    node_->set_name("expert, in a node");
    across_ = group.split(rank % n, rank / n);
    across_->set_name("expert, over nodes");
    leaving_.resize(static_cast<std::size_t>(group.size()));
    passing_.resize(leaving_.size());
  }

  void allocate_buffers(Arena& arena, std::span<const std::int64_t> rows_per_pair,
                        std::int64_t row_bytes) override {
    slots_.clear();
    // A rank passes on what any rank of its node sends to any rank of its place.
    for (const std::int64_t rows : rows_per_pair) make_buffers(arena, n_ * m_ * rows, row_bytes);
  }

  void start(std::int64_t slot, Tensor sent, const RowBlocks& sent_blocks, Tensor,
             const RowBlocks& received_blocks) override {
    const Buffers& buffer = buffers(slot);
    // leaving_, and what was sent, by (place of the receiver, its node).
    std::int64_t next = 0;
    for (std::int64_t j = 0; j < n_; ++j)
      for (std::int64_t k = 0; k < m_; ++k) {
        const auto r = static_cast<std::size_t>(k * n_ + j);
        note(next, sent_blocks.row_offsets[r], sent_blocks.num_rows[r]);
        leaving_[static_cast<std::size_t>(j * m_ + k)] = sent_blocks.num_rows[r];
        next += sent_blocks.num_rows[r];
      }
    const Tensor leaving = rows_in(buffer.out, next, sent);
    copy_noted(leaving, sent);
    node_->all_to_all(leaving_, passing_, m_);
    add_up(sent_to_, leaving_, n_, m_);
    add_up(received_from_, passing_, n_, m_);
    const std::int64_t passing_rows = sum(passing_);
    const Tensor passing = rows_in(buffer.in, passing_rows, sent),
                 turned = rows_in(buffer.out, passing_rows, sent);
    node_->all_to_all_rows(leaving.data, {sent_to_, {}}, passing.data, {received_from_, {}},
                           sent.row_bytes());

    // From (sender of this node, node of the receiver) to (node of the receiver, sender).
    next = 0;
    sent_to_.assign(static_cast<std::size_t>(m_), 0);
    for (std::int64_t k = 0; k < m_; ++k) {
      std::int64_t from = 0;
      for (std::int64_t i = 0; i < n_; ++i)
        for (std::int64_t other = 0; other < m_; ++other) {
          const std::int64_t rows = passing_[static_cast<std::size_t>(i * m_ + other)];
          if (other == k) {
            note(next, from, rows);
            next += rows;
            sent_to_[static_cast<std::size_t>(k)] += rows;
          }
          from += rows;
        }
    }
    copy_noted(turned, passing);
    add_up(received_from_, received_blocks.num_rows, m_, n_);
    across_->start_all_to_all_rows(slot, turned.data, {sent_to_, {}},
                                   rows_in(buffer.in, sum(received_blocks.num_rows), sent).data,
                                   {received_from_, {}}, sent.row_bytes());
  }

  // What arrives is by (node, place) of its sender: by rank.
  void finish(std::int64_t slot, Tensor received, const RowBlocks& received_blocks) override {
    across_->wait_for_rows(slot);
    std::int64_t next = 0;
    for (std::size_t r = 0; r < received_blocks.num_rows.size(); ++r) {
      note(received_blocks.row_offsets[r], next, received_blocks.num_rows[r]);
      next += received_blocks.num_rows[r];
    }
    copy_noted(received, rows_in(buffers(slot).in, next, received));
  }
  void advance() override { across_->advance(); }

 private:
  // result = the sums of `groups` stretches of `length` counts each.
  static void add_up(Counts& result, std::span<const std::int64_t> counts, std::int64_t groups,
                     std::int64_t length) {
    result.assign(static_cast<std::size_t>(groups), 0);
    for (std::int64_t g = 0; g < groups; ++g)
      for (std::int64_t i = 0; i < length; ++i)
        result[static_cast<std::size_t>(g)] += counts[static_cast<std::size_t>(g * length + i)];
  }

  static std::int64_t sum(std::span<const std::int64_t> counts) {
    return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  }

  std::int64_t n_, m_;
  std::unique_ptr<Communicator> node_, across_;
  Counts leaving_;  // (n, m): rows from here to rank j of node k
  Counts passing_;  // (n, m): rows from rank i of this node to the rank of this place on node k
  Counts sent_to_, received_from_;  // of one level: rows by rank of its group
};

}  // namespace

std::int64_t equal_stretch(const std::vector<std::string>& hosts) {
  std::size_t length = 1;
  while (length < hosts.size() && hosts[length] == hosts[0]) ++length;
  if (hosts.size() % length != 0) return 0;
  std::set<std::string> seen;
  for (std::size_t r = 0; r < hosts.size(); ++r) {
    const bool begins = r % length == 0;
    if (begins ? !seen.insert(hosts[r]).second : hosts[r] != hosts[r - 1]) return 0;
  }
  return static_cast<std::int64_t>(length);
}

std::int64_t ranks_per_host(Communicator& group) {
  return equal_stretch(group.all_gather(host_name()));
}

namespace {

// `per_node` ranks of a group of `size` on every node; 0: they are not equal stretches.
ExchangeRoute route_for(const ParallelConfig& config, std::int64_t size, std::int64_t per_node) {
  const std::int64_t parts = config.exchange_parts;
  if (config.exchange == ExchangeKind::direct || config.exchange == ExchangeKind::fixed_capacity)
    return {config.exchange, 1, parts};
  const bool is_even = per_node > 0 && size % per_node == 0;
  if (config.exchange == ExchangeKind::two_level && !is_even)
    throw UserError(
        per_node == 0
            ? concat("parallel.exchange: found two_level, but the ", size,
                     " ranks of an expert group do not lie in equal stretches on their hosts; "
                     "allowed: direct, or the same number of ranks on every host, or "
                     "parallel.ranks_per_node")
            : concat("parallel.ranks_per_node: found ", per_node, ", which does not divide the ",
                     size, " ranks of an expert group"));
  const bool pays = is_even && per_node > 1 && per_node < size;
  if (config.exchange == ExchangeKind::two_level || pays)
    return {ExchangeKind::two_level, per_node, parts};
  return {ExchangeKind::direct, 1, parts};
}

}  // namespace

ExchangeRoute choose_route(const ParallelConfig& config, Communicator& group) {
  const bool asks_hosts =
      config.exchange == ExchangeKind::two_level || config.exchange == ExchangeKind::automatic;
  std::int64_t per_node = config.ranks_per_node;
  if (asks_hosts && per_node == 0) per_node = ranks_per_host(group);
  return route_for(config, group.size(), per_node);
}

ExchangeRoute planned_route(const ParallelConfig& config, std::int64_t size,
                            std::int64_t hosts_stretch) {
  std::int64_t per_node = config.ranks_per_node > 0 ? config.ranks_per_node : hosts_stretch;
  if (per_node == 0 && config.exchange == ExchangeKind::two_level) per_node = 1;  // some nodes
  return route_for(config, size, per_node);
}

std::unique_ptr<RowTransport> make_row_transport(Ops& ops, const ExchangeRoute& route,
                                                 Communicator& group) {
  if (route.kind == ExchangeKind::fixed_capacity)
    return std::make_unique<FixedCapacityTransport>(ops, group);
  if (route.kind == ExchangeKind::two_level)
    return std::make_unique<TwoLevelTransport>(ops, group, route.ranks_per_node);
  return std::make_unique<DirectTransport>(group);
}

}  // namespace openmoe
