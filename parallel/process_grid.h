// ProcessGrid: world rank -> (dp, ep, tp) coordinates, and the groups that collectives run over.
//
// world = dp x ep x tp, tp fastest, then ep: world_rank = (dp_rank * ep + ep_rank) * tp + tp_rank.
// The dp * ep "data ranks" each compute different rows; the experts are spread over the ep ranks;
// ranks that differ only in dp_rank hold the same experts. The tp ranks of a tensor group compute
// the same rows and share every matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/config/recipe.h"
#include "core/param_table.h"
#include "parallel/communicator.h"

namespace openmoe {

class ProcessGrid {
 public:
  // Throws UserError on every rank when ep * tp does not divide the world size. Collective over
  // `world`, which must outlive this. A world of one is a grid without MPI.
  ProcessGrid(Communicator& world, std::int64_t ep, std::int64_t tp);

  std::int64_t dp() const { return dp_; }
  std::int64_t ep() const { return ep_; }
  std::int64_t tp() const { return tp_; }
  std::int64_t dp_rank() const { return dp_rank_; }
  std::int64_t ep_rank() const { return ep_rank_; }
  std::int64_t tp_rank() const { return tp_rank_; }
  std::int64_t num_data_ranks() const { return dp_ * ep_; }
  std::int64_t data_rank() const { return dp_rank_ * ep_ + ep_rank_; }
  int world_rank() const { return world_->rank_in_group(); }
  bool is_root() const { return world_rank() == 0; }

  Communicator& world() { return *world_; }
  // All data ranks of one tp_rank: dense gradients, losses.
  Communicator& data() { return *data_; }
  Communicator& expert() { return *expert_; }  // the ep ranks of one dp_rank: token exchange
  // The dp ranks that hold the same experts: expert gradients.
  Communicator& replicas() { return *replicas_; }
  // The tp ranks of one data rank: activations of the same rows.
  Communicator& tensor() { return *tensor_; }

  // Where tensors are in the memory of a device: the twins, made by `make`, of all groups of more
  // than one rank that tensors go through. Collective over the world.
  void attach_device(const Communicator::MakeTwin& make);
  void detach_device() { twins_.clear(); }
  // `group`, one of the above, for tensors of the device that computes: its twin, or on the host
  // the group itself.
  Communicator& for_tensors(Communicator& group);
  // The ranks whose values of such a parameter are the same, and whose gradients are added up; for
  // tensors.
  Communicator& holders(Sharding sharding);

  std::string coordinates() const;  // "rank 3 (dp 1, ep 1, tp 0)"

  // Checks what a recipe needs of this grid: ep divides model.num_experts; tp divides heads, widths
  // and positions; the rows of a data rank
  // (data.batch_rows / data ranks) and its micro-batches are whole routing groups. Throws one
  // UserError, the same on every rank, that names every key in conflict, its value, and the nearest
  // values that would do.
  void check(const Recipe& recipe) const;

 private:
  Communicator& holders_on_host(Sharding sharding);

  Communicator* world_;
  std::int64_t dp_, ep_, tp_, dp_rank_, ep_rank_, tp_rank_;
  std::unique_ptr<Communicator> data_, expert_, replicas_, tensor_;
  std::vector<std::pair<const Communicator*, std::unique_ptr<Communicator>>> twins_;
};

}  // namespace openmoe
