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

CheckpointSnapshot::~CheckpointSnapshot() {
  if (device_ != nullptr) device_->free_host_bytes(block_, block_bytes_);
}

void CheckpointSnapshot::allocate(Arena& arena, Ops& ops, const ParamTable& table) {
  tensors_ = tensors_to_write(table);
  if (ops.device() == Device::host) {
    for (StoredTensor& tensor : tensors_)
      tensor.local = arena.allocate(tensor.name, MemoryCategory::snapshot, tensor.local.dtype,
                                    tensor.local.shape);
    return;
  }
  if (arena.is_dry()) return;
  for (const StoredTensor& tensor : tensors_) block_bytes_ += tensor.local.size_bytes();
  block_ = ops.allocate_host_bytes(block_bytes_);
  device_ = &ops;
  char* next = static_cast<char*>(block_);
  for (StoredTensor& tensor : tensors_) {
    tensor.local.data = next;
    tensor.local.device = Device::host;
    next += tensor.local.size_bytes();
  }
}

void CheckpointSnapshot::take(Ops& ops, const ParamTable& table) {
  const std::vector<StoredTensor> from = tensors_to_write(table);
  OPENMOE_CHECK(from.size() == tensors_.size(), from.size(), " tensors, not ", tensors_.size());
  for (std::size_t i = 0; i < from.size(); ++i) ops.download(tensors_[i].local, from[i].local);
}

void BackgroundSave::start(const std::string& folder, const CheckpointMeta& meta, Ops& ops,
                           const ParamTable& table) {
  OPENMOE_CHECK(save_ == nullptr, pending(), " is not complete");
  auto save = std::make_unique<CheckpointSave>(folder, meta, grid_);
  snapshot_.take(ops, table);
  save_ = std::move(save);
  is_written_ = false;
  ops_ = &ops;
  if (ops.downloads_are_done()) start_writing();
}

void BackgroundSave::start_writing() {
  ops_ = nullptr;
  thread_ = std::jthread([this](std::stop_token stop) {
    give_way();
    save_->write(snapshot_.tensors(), std::move(stop));
    is_written_ = true;
  });
}

bool BackgroundSave::is_written() {
  if (ops_ != nullptr && ops_->downloads_are_done()) start_writing();
  std::int64_t are_left[] = {is_written_ ? 0 : 1};
  grid_.world().all_reduce_max(std::span<std::int64_t>(are_left));
  return are_left[0] == 0;
}

void BackgroundSave::finish() {
  if (ops_ != nullptr) {
    ops_->finish_downloads();
    start_writing();
  }
  thread_.join();
  const std::unique_ptr<CheckpointSave> save = std::move(save_);
  save->publish();
}

}  // namespace openmoe
