// BackgroundSave: checkpoints whose files are written while training goes on. What a rank writes is
// copied into memory of its own (MemoryCategory::snapshot, as much again as its part of a
// checkpoint; from a device, into page-locked host memory, while the next step is computed); a
// thread, which calls neither MPI nor the device, writes from there; when all ranks have written, a
// later call on the main threads makes the checkpoint complete. Until then it does not exist: a
// process that dies leaves the checkpoints of before.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "apps/checkpoint_save.h"
#include "core/arena.h"
#include "core/ops.h"

namespace openmoe {

// A copy of what a rank writes.
class CheckpointSnapshot {
 public:
  CheckpointSnapshot() = default;
  ~CheckpointSnapshot();
  CheckpointSnapshot(const CheckpointSnapshot&) = delete;
  CheckpointSnapshot& operator=(const CheckpointSnapshot&) = delete;

  // Memory for the tensors of `table`, which may be without memory: of the arena where `ops` are of
  // the host; of a device, which must outlive this, host memory beside the arena.
  void allocate(Arena& arena, Ops& ops, const ParamTable& table);
  // Starts to copy them (Ops::download). `table` as in allocate().
  void take(Ops& ops, const ParamTable& table);

  const std::vector<StoredTensor>& tensors() const { return tensors_; }

 private:
  std::vector<StoredTensor> tensors_;
  Ops* device_ = nullptr;  // whose host memory `block_` is
  void* block_ = nullptr;
  std::int64_t block_bytes_ = 0;
};

class BackgroundSave {
 public:
  // All references must outlive this.
  BackgroundSave(CheckpointSnapshot& snapshot, ProcessGrid& grid)
      : snapshot_(snapshot), grid_(grid) {}
  // Gives up what is under way, as soon as a tensor is written or synced.
  ~BackgroundSave() = default;
  BackgroundSave(const BackgroundSave&) = delete;
  BackgroundSave& operator=(const BackgroundSave&) = delete;

  // The folder of the checkpoint that is being written, "" when there is none; the same on every
  // rank.
  std::string pending() const { return save_ == nullptr ? "" : save_->folder(); }

  // Collective over the world, as are the others; none may be pending. Throws as save_checkpoint.
  void start(const std::string& folder, const CheckpointMeta& meta, Ops& ops,
             const ParamTable& table);
  // Of a pending one: whether every rank has written its file. One reduction of 8 bytes.
  bool is_written();
  // Waits for the pending one and makes it complete. Throws as save_checkpoint; none is pending
  // afterwards.
  void finish();

 private:
  void start_writing();

  CheckpointSnapshot& snapshot_;
  ProcessGrid& grid_;
  Ops* ops_ = nullptr;  // from which the snapshot is on its way; null: it is complete
  std::unique_ptr<CheckpointSave> save_;
  std::atomic<bool> is_written_{false};  // by this rank
  std::jthread thread_;                  // the last member: it ends before the others do
};

}  // namespace openmoe
