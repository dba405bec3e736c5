// Split: how the tensor-parallel ranks that decode together share the rows of matrices. Every rank
// takes a stretch of whole units, as even as they allow: a size need not be a multiple of the
// number of ranks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/base/check.h"
#include "core/config/recipe.h"
#include "core/infer/packed_matrix.h"

namespace openmoe::infer {

// [0, total) in one piece per rank.
class Split {
 public:
  // Pieces of whole `unit`s, but for the end of the last.
  Split(std::int64_t total, std::int64_t unit, std::int64_t num_ranks, std::int64_t own) {
    OPENMOE_CHECK(total > 0 && unit > 0 && 0 <= own && own < num_ranks, total, " in units of ",
                  unit, " over ", num_ranks, " ranks, of ", own);
    const std::int64_t units = (total + unit - 1) / unit;
    total_ = total;
    for (std::int64_t r = 0; r < num_ranks; ++r) {
      const std::int64_t begin = units * r / num_ranks * unit;
      const std::int64_t end = std::min(total, units * (r + 1) / num_ranks * unit);
      counts_.push_back(end - begin);
      if (r == own) begin_ = begin;
    }
    size_ = counts_[static_cast<std::size_t>(own)];
  }

  std::int64_t total() const { return total_; }
  std::int64_t begin() const { return begin_; }  // of this rank's piece
  std::int64_t size() const { return size_; }
  std::int64_t num_ranks() const { return static_cast<std::int64_t>(counts_.size()); }
  const std::vector<std::int64_t>& counts() const { return counts_; }  // of every rank's piece

 private:
  std::int64_t total_ = 0, begin_ = 0, size_ = 0;
  std::vector<std::int64_t> counts_;
};

// What one of tp ranks computes of every row of activations.
struct TensorSplits {
  TensorSplits(const ModelConfig& model, std::int64_t tp, std::int64_t tp_rank)
      : attention(model.attention_dim(), model.head_dim, tp, tp_rank),
        ffn(model.ffn_dim, kPanelRows, tp, tp_rank),
        d_model(model.d_model, kPanelRows, tp, tp_rank),
        vocab(model.vocab_size, kPanelRows, tp, tp_rank) {}

  // Of how many ranks each gets a head, and a panel of every matrix.
  static std::int64_t most_ranks(const ModelConfig& model) {
    const std::int64_t narrowest = std::min({model.ffn_dim, model.d_model, model.vocab_size});
    return std::min(model.num_heads, (narrowest + kPanelRows - 1) / kPanelRows);
  }

  Split attention;  // A, in heads
  Split ffn;        // F, of dense FFN, residual FFN and each expert
  Split d_model;    // D
  Split vocab;      // V
};

}  // namespace openmoe::infer
