#include "apps/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "apps/agree.h"
#include "apps/checkpoint_manifest.h"
#include "apps/checkpoint_reader.h"
#include "core/base/error.h"
#include "data/durable_files.h"
#include "data/h5_file.h"
#include "data/hash.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStepPrefix = "step-";
constexpr const char* kHiddenPrefix = ".step-";  // being written or removed: never read

// One tensor of a table as a checkpoint knows it.
struct StoredTensor {
  std::string name;
  Tensor local;
  Placement placement;
};

std::vector<StoredTensor> stored_tensors(const Param& param) {
  std::vector<StoredTensor> tensors;
  const auto add = [&](const char* kind, Tensor Param::*member) {
    const Tensor& local = param.*member;
    if (!local) return;
    OPENMOE_CHECK(local.device == Device::host, param.name, ": checkpoints are of host memory");
    tensors.push_back({kind + param.name, local, param.placement(member)});
  };
  add("value/", &Param::value);
  add("stat_row/", &Param::stat_row);
  add("stat_col/", &Param::stat_col);
  return tensors;
}

// Whether this rank writes what it holds: each part of a tensor is written once.
bool is_writer(const Param& param, const StoredTensor& tensor, const ProcessGrid& grid) {
  if (grid.dp_rank() != 0) return false;
  if (param.sharding != Sharding::expert && grid.ep_rank() != 0) return false;
  return tensor.placement.is_shared_by_tensor_group || grid.tp_rank() == 0;
}

std::string rank_file_name(int world_rank) {
  char name[32];
  std::snprintf(name, sizeof name, "rank-%05d.h5", world_rank);
  return name;
}

// Writes what is this rank's to write. Returns the part of the manifest, "" when there is nothing.
std::string write_rank_file(const fs::path& folder, const ParamTable& table,
                            const ProcessGrid& grid) {
  std::vector<StoredTensor> mine;
  for (const Param& param : table.params())
    for (StoredTensor& tensor : stored_tensors(param))
      if (is_writer(param, tensor, grid)) mine.push_back(std::move(tensor));
  if (mine.empty()) return "";
  CheckpointPart part;
  part.file.name = rank_file_name(grid.world_rank());
  const std::string path = folder / part.file.name;
  H5File file(path, H5File::Mode::create);
  for (const StoredTensor& tensor : mine) {
    file.write(tensor.name, tensor.local);
    CheckpointTensor written{
        tensor.name, name_of(tensor.local.dtype), tensor.placement.global_shape, {}};
    for (const Piece& piece : tensor.placement.pieces)
      written.slices.push_back({part.file.name, piece});
    part.tensors.push_back(std::move(written));
  }
  file.close();
  sync_path(path);
  std::error_code error;
  part.file.bytes = static_cast<std::int64_t>(fs::file_size(path, error));
  if (error) throw RuntimeFault(concat("file_size failed on ", path, ": ", error.message()));
  part.file.sha256 = sha256_file(path);
  return to_text(part);
}

fs::path hidden_name(const fs::path& folder, const char* purpose) {
  return folder.parent_path() / ("." + folder.filename().string() + purpose);
}

// A fresh folder for a checkpoint to come. Removes what interrupted saves and removals left.
void prepare_folder(const fs::path& temporary) {
  try {
    const fs::path parent = temporary.parent_path();
    // The name of a new checkpoints folder must survive a crash too.
    if (fs::create_directories(parent)) sync_path(parent.parent_path().string());
    for (const auto& entry : fs::directory_iterator(parent))
      if (entry.path().filename().string().starts_with(kHiddenPrefix)) fs::remove_all(entry.path());
    fs::create_directory(temporary);
  } catch (const fs::filesystem_error& error) {
    throw UserError(concat(error.path1().string(), ": cannot be written: ", error.code().message(),
                           "; the run folder must be a writable place with room for checkpoints"));
  }
}

// Manifest last, then the name: whoever sees the name sees a whole checkpoint.
void publish(const fs::path& temporary, const fs::path& folder,
             const CheckpointManifest& manifest) {
  write_and_sync(temporary / kCheckpointManifest, to_text(manifest));
  publish_folder(temporary, folder);
}

// Checkpoints of a run folder by step. Folders without a manifest are not checkpoints.
std::map<std::int64_t, fs::path> complete_checkpoints(const std::string& run_folder) {
  std::map<std::int64_t, fs::path> found;
  const fs::path folder = fs::path(run_folder) / "checkpoints";
  std::error_code error;
  // A folder that cannot be read is not an empty one: a run must not start over because of it.
  const auto check = [&] {
    if (error && error != std::errc::no_such_file_or_directory &&
        error != std::errc::not_a_directory)
      throw RuntimeFault(concat(folder.string(), ": cannot be read: ", error.message()));
  };
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (!name.starts_with(kStepPrefix)) continue;
    const std::string digits = name.substr(std::string(kStepPrefix).size());
    const bool is_number =
        !digits.empty() && digits.size() < 18 &&
        std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (is_number && fs::is_regular_file(entry->path() / kCheckpointManifest, error))
      found[std::stoll(digits)] = entry->path();
    check();
  }
  check();
  return found;
}

void check_fits(const StoredTensor& want, const CheckpointTensor* found,
                const std::string& folder) {
  if (found == nullptr)
    throw UserError(concat(folder, ": holds no ", want.name, " ",
                           want.placement.global_shape.to_string(),
                           ", which this model has; load it with the recipe it was trained with"));
  if (!(found->shape == want.placement.global_shape) || found->dtype != name_of(want.local.dtype))
    throw UserError(concat(folder, ": ", want.name, " is ", found->dtype, " ",
                           found->shape.to_string(), ", this model's is ",
                           name_of(want.local.dtype), " ", want.placement.global_shape.to_string(),
                           "; load it with the recipe it was trained with"));
}

void read_tensors(const std::string& folder, const CheckpointManifest& manifest, ParamTable& table,
                  bool with_optimizer) {
  std::vector<std::pair<StoredTensor, const CheckpointTensor*>> wanted;
  std::set<std::string> names;
  for (const Param& param : table.params()) {
    OPENMOE_CHECK(param.value && (!with_optimizer || param.stat_row), param.name,
                  " has no memory to load into");
    for (const StoredTensor& tensor : stored_tensors(param)) {
      names.insert(tensor.name);
      if (!with_optimizer && !tensor.name.starts_with("value/")) continue;
      wanted.emplace_back(tensor, manifest.find(tensor.name));
      check_fits(tensor, wanted.back().second, folder);
    }
  }
  for (const CheckpointTensor& tensor : manifest.tensors)
    if (tensor.name.starts_with("value/") && !names.contains(tensor.name))
      throw UserError(concat(folder, ": holds ", tensor.name, " ", tensor.shape.to_string(),
                             ", which this model does not have; load it with the recipe it was "
                             "trained with"));
  CheckpointReader reader(folder, manifest);
  for (const auto& [tensor, found] : wanted)
    for (const Piece& piece : tensor.placement.pieces) reader.read(*found, piece, tensor.local);
}

}  // namespace

std::string checkpoint_folder(const std::string& run_folder, std::int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "%s%08lld", kStepPrefix, static_cast<long long>(step));
  return fs::path(run_folder) / "checkpoints" / name;
}

void save_checkpoint(const std::string& folder, const ParamTable& table, const CheckpointMeta& meta,
                     ProcessGrid& grid) {
  const fs::path temporary = hidden_name(folder, ".partial");
  const auto give_up = [&](const std::string& reason) {
    std::error_code ignored;
    if (grid.is_root()) fs::remove_all(temporary, ignored);
    return concat("the checkpoint of step ", meta.step, " was not saved: ", reason,
                  "; checkpoints saved before are untouched");
  };
  Communicator& world = grid.world();
  try {
    on_root(world, [&] { prepare_folder(temporary); });
    std::string part;
    on_every_rank(world, [&] { part = write_rank_file(temporary, table, grid); });
    const std::vector<std::string> parts = world.all_gather(part);
    on_root(world, [&] {
      CheckpointManifest manifest{meta, grid.dp(), grid.ep(), grid.tp(), {}, {}};
      for (const std::string& text : parts)
        if (!text.empty()) add_part(manifest, text);
      publish(temporary, folder, manifest);
    });
  } catch (const UserError& error) {
    throw UserError(give_up(error.what()));
  } catch (const RuntimeFault& error) {
    throw RuntimeFault(give_up(error.what()));
  }
}

CheckpointMeta load_checkpoint(const std::string& folder, ParamTable& table, ProcessGrid& grid,
                               bool with_optimizer) {
  const std::string path = fs::path(folder) / kCheckpointManifest;
  std::string text;
  on_root(grid.world(), [&] {
    text = read_manifest_text(folder);
    parse_manifest(text, path);
  });
  grid.world().broadcast(text, 0);
  const CheckpointManifest manifest = parse_manifest(text, path);
  on_every_rank(grid.world(), [&] { read_tensors(folder, manifest, table, with_optimizer); });
  return manifest.meta;
}

CheckpointMeta read_checkpoint_meta(const std::string& folder) {
  return read_manifest(folder).meta;
}

std::string latest_checkpoint(const std::string& run_folder) {
  const auto found = complete_checkpoints(run_folder);
  return found.empty() ? "" : found.rbegin()->second.string();
}

std::string find_checkpoint(const std::string& place) {
  std::error_code ignored;
  return fs::is_regular_file(fs::path(place) / kCheckpointManifest, ignored)
             ? place
             : latest_checkpoint(place);
}

std::string require_checkpoint(const std::string& place) {
  std::string found = find_checkpoint(place);
  if (found.empty())
    throw UserError(place +
                    ": holds no checkpoint; allowed: a run folder of openmoe train, or one made by "
                    "openmoe convert from a Hugging Face folder, or one of its checkpoints");
  return found;
}

void prune_checkpoints(const std::string& run_folder, std::int64_t keep, std::int64_t keep_every) {
  OPENMOE_CHECK(keep >= 1 && keep_every >= 0, "keep ", keep, ", every ", keep_every);
  auto found = complete_checkpoints(run_folder);
  while (static_cast<std::int64_t>(found.size()) > keep) {
    const auto [step, oldest] = *found.begin();
    found.erase(found.begin());
    if (keep_every > 0 && step > 0 && step % keep_every == 0) continue;
    // Out of sight first, so that a removal that is interrupted leaves nothing that looks whole.
    const fs::path hidden = hidden_name(oldest, ".removing");
    std::error_code error;
    fs::rename(oldest, hidden, error);
    if (!error) fs::remove_all(hidden, error);
    if (error)
      throw RuntimeFault(
          concat("removing the old checkpoint ", oldest.string(), " failed: ", error.message()));
  }
}

}  // namespace openmoe
