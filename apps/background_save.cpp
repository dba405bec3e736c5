#include "apps/background_save.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <span>
#include <utility>

#include "core/base/check.h"

namespace openmoe {
namespace {

// Threads that compute wait for each other, so that one that has to share its core holds up all.
void give_way() {
  constexpr int kNice = 10;
  // Linux: of this thread alone. Without it the job is slower, no more.
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNice);
}

}  // namespace

void CheckpointSnapshot::allocate(Arena& arena, const ParamTable& table) {
  tensors_ = tensors_to_write(table);
  for (StoredTensor& tensor : tensors_)
    tensor.local = arena.allocate(tensor.name, MemoryCategory::snapshot, tensor.local.dtype,
                                  tensor.local.shape);
}

void CheckpointSnapshot::take(Ops& ops, const ParamTable& table) {
  const std::vector<StoredTensor> from = tensors_to_write(table);
  OPENMOE_CHECK(from.size() == tensors_.size(), from.size(), " tensors, not ", tensors_.size());
  for (std::size_t i = 0; i < from.size(); ++i) ops.copy(tensors_[i].local, from[i].local);
}

void BackgroundSave::start(const std::string& folder, const CheckpointMeta& meta, Ops& ops,
                           const ParamTable& table) {
  OPENMOE_CHECK(save_ == nullptr, pending(), " is not complete");
  auto save = std::make_unique<CheckpointSave>(folder, meta, grid_);
  snapshot_.take(ops, table);
  save_ = std::move(save);
  is_written_ = false;
  thread_ = std::jthread([this](std::stop_token stop) {
    give_way();
    save_->write(snapshot_.tensors(), std::move(stop));
    is_written_ = true;
  });
}

bool BackgroundSave::is_written() {
  std::int64_t are_left[] = {is_written_ ? 0 : 1};
  grid_.world().all_reduce_max(std::span<std::int64_t>(are_left));
  return are_left[0] == 0;
}

void BackgroundSave::finish() {
  thread_.join();
  const std::unique_ptr<CheckpointSave> save = std::move(save_);
  save->publish();
}

}  // namespace openmoe
