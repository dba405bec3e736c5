#include "apps/checkpoint_save.h"

#include <cstdio>
#include <filesystem>
#include <utility>

#include "apps/agree.h"
#include "apps/checkpoint_manifest.h"
#include "apps/checkpoint_names.h"
#include "apps/checkpoint_reader.h"
#include "core/base/error.h"
#include "data/durable_files.h"
#include "data/h5_file.h"
#include "data/hash.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

// Whether this rank writes what it holds: each part of a tensor is written once.
bool is_writer(const Param& param, const StoredTensor& tensor, const ParamShare& share) {
  const bool is_own = tensor.placement.is_shared_by_tensor_group || share.tp_rank == 0;
  if (tensor.placement.is_divided)  // a replicated parameter over tensor groups too
    return tensor.local.num_elements() > 0 && (param.sharding == Sharding::replicated || is_own);
  if (share.dp_rank != 0) return false;
  if (param.sharding != Sharding::expert && share.ep_rank != 0) return false;
  return is_own;
}

std::string rank_file_name(int world_rank) {
  char name[32];
  std::snprintf(name, sizeof name, "rank-%05d.h5", world_rank);
  return name;
}

// Returns the part of the manifest, "" when there is nothing to write.
std::string write_rank_file(const fs::path& folder, int world_rank,
                            const std::vector<StoredTensor>& tensors, const std::stop_token& stop) {
  const auto check_wanted = [&] {
    if (stop.stop_requested()) throw RuntimeFault("the run ends");
  };
  if (tensors.empty()) return "";
  // What is written goes on to the disk now and then, so that no sync takes long: it cannot be
  // interrupted, and a rank that fails must not keep the others waiting.
  constexpr std::int64_t kSyncBytes = 256 << 20;
  std::int64_t unsynced_bytes = 0;
  CheckpointPart part;
  part.file.name = rank_file_name(world_rank);
  const std::string path = folder / part.file.name;
  H5File file(path, H5File::Mode::create);
  for (const StoredTensor& tensor : tensors) {
    check_wanted();
    file.write(tensor.name, tensor.local);
    unsynced_bytes += tensor.local.size_bytes();
    if (unsynced_bytes >= kSyncBytes) {
      sync_path(path);
      unsynced_bytes = 0;
    }
    OPENMOE_CHECK(tensor.local.device == Device::host, tensor.name, ": written from a device");
    CheckpointTensor written{
        tensor.name, name_of(tensor.local.dtype), tensor.placement.global_shape, {}};
    for (const Piece& piece : tensor.placement.pieces)
      written.slices.push_back({part.file.name, piece});
    part.tensors.push_back(std::move(written));
  }
  file.close();
  check_wanted();
  sync_path(path);
  std::error_code error;
  part.file.bytes = static_cast<std::int64_t>(fs::file_size(path, error));
  if (error) throw RuntimeFault(concat("file_size failed on ", path, ": ", error.message()));
  part.file.sha256 = sha256_file(path, check_wanted);
  return to_text(part);
}

// A fresh folder for a checkpoint to come. Removes what interrupted saves and removals left.
void prepare_folder(const fs::path& temporary) {
  try {
    const fs::path parent = temporary.parent_path();
    // The name of a new checkpoints folder must survive a crash too.
    if (fs::create_directories(parent)) sync_path(parent.parent_path().string());
    for (const auto& entry : fs::directory_iterator(parent))
      if (entry.path().filename().string().starts_with(kHiddenCheckpointPrefix))
        fs::remove_all(entry.path());
    fs::create_directory(temporary);
  } catch (const fs::filesystem_error& error) {
    throw UserError(concat(error.path1().string(), ": cannot be written: ", error.code().message(),
                           "; the run folder must be a writable place with room for checkpoints"));
  }
}

}  // namespace

std::vector<StoredTensor> stored_tensors(const Param& param) {
  std::vector<StoredTensor> tensors;
  const auto add = [&](const char* kind, Tensor Param::*member) {
    const Tensor& local = param.*member;
    if (local.shape.rank == 0) return;  // not allocated
    tensors.push_back({kind + param.name, local, param.placement(member)});
  };
  add("value/", &Param::value);
  add("stat_row/", &Param::stat_row);
  add("stat_col/", &Param::stat_col);
  return tensors;
}

std::vector<StoredTensor> tensors_to_write(const ParamTable& table) {
  std::vector<StoredTensor> mine;
  for (const Param& param : table.params())
    for (StoredTensor& tensor : stored_tensors(param))
      if (is_writer(param, tensor, table.share())) mine.push_back(std::move(tensor));
  return mine;
}

// The same exception on every rank, with what it means for the run.
template <typename Action>
void CheckpointSave::explain(Action&& action) const {
  try {
    action();
  } catch (const UserError& error) {
    throw UserError(give_up(error.what()));
  } catch (const RuntimeFault& error) {
    throw RuntimeFault(give_up(error.what()));
  }
}

std::string CheckpointSave::give_up(const std::string& reason) const {
  std::error_code ignored;
  if (grid_.is_root()) fs::remove_all(temporary_, ignored);
  return concat("the checkpoint of step ", meta_.step, " was not saved: ", reason,
                "; checkpoints saved before are untouched");
}

CheckpointSave::CheckpointSave(const std::string& folder, const CheckpointMeta& meta,
                               ProcessGrid& grid)
    : folder_(folder), temporary_(hidden_checkpoint(folder, ".partial")), meta_(meta), grid_(grid) {
  explain([&] { on_root(grid_.world(), [&] { prepare_folder(temporary_); }); });
}

void CheckpointSave::write(const std::vector<StoredTensor>& tensors, std::stop_token stop) {
  try {
    part_ = write_rank_file(temporary_, grid_.world_rank(), tensors, stop);
  } catch (...) {
    error_ = std::current_exception();
  }
}

// Manifest last, then the name: whoever sees the name sees a whole checkpoint.
void CheckpointSave::publish() {
  explain([&] {
    on_every_rank(grid_.world(), [&] {
      if (error_ != nullptr) std::rethrow_exception(error_);
    });
    const std::vector<std::string> parts = grid_.world().all_gather(part_);
    on_root(grid_.world(), [&] {
      CheckpointManifest manifest{meta_, grid_.dp(), grid_.ep(), grid_.tp(), {}, {}};
      for (const std::string& text : parts)
        if (!text.empty()) add_part(manifest, text);
      write_and_sync(fs::path(temporary_) / kCheckpointManifest, to_text(manifest));
      publish_folder(temporary_, folder_);
    });
  });
}

}  // namespace openmoe
