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
#include "apps/checkpoint_names.h"
#include "apps/checkpoint_reader.h"
#include "apps/checkpoint_save.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

namespace fs = std::filesystem;

using CheckpointsByStep = std::map<std::int64_t, fs::path>;

// Checkpoints of a run folder by step. Folders without a manifest are not checkpoints; as these
// are named when they are complete, something took it away.
CheckpointsByStep complete_checkpoints(const std::string& run_folder,
                                       CheckpointsByStep* incomplete = nullptr) {
  CheckpointsByStep found;
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
    if (!name.starts_with(kCheckpointPrefix)) continue;
    const std::string digits = name.substr(std::string(kCheckpointPrefix).size());
    const bool is_number =
        !digits.empty() && digits.size() < 18 &&
        std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (is_number && fs::is_regular_file(entry->path() / kCheckpointManifest, error))
      found[std::stoll(digits)] = entry->path();
    else if (is_number && incomplete != nullptr && entry->is_directory(error))
      (*incomplete)[std::stoll(digits)] = entry->path();
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
  std::snprintf(name, sizeof name, "%s%08lld", kCheckpointPrefix, static_cast<long long>(step));
  return fs::path(run_folder) / "checkpoints" / name;
}

void save_checkpoint(const std::string& folder, const ParamTable& table, const CheckpointMeta& meta,
                     ProcessGrid& grid) {
  CheckpointSave save(folder, meta, grid);
  save.write(tensors_to_write(table));
  save.publish();
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
  CheckpointsByStep incomplete;
  const auto found = complete_checkpoints(run_folder, &incomplete);
  const std::int64_t newest = found.empty() ? -1 : found.rbegin()->first;
  if (incomplete.empty() || incomplete.rbegin()->first < newest)
    return found.empty() ? "" : found.rbegin()->second.string();
  const std::string lost = concat(incomplete.rbegin()->second.string(), ": holds no ",
                                  kCheckpointManifest, ", so it is no whole checkpoint");
  // A run must not start over because of it.
  if (found.empty()) throw UserError(lost + "; bring the file back, or move the folder away");
  std::fprintf(stderr, "warning: %s; %s is taken\n", lost.c_str(), found.rbegin()->second.c_str());
  return found.rbegin()->second.string();
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
    const fs::path hidden = hidden_checkpoint(oldest, ".removing");
    std::error_code error;
    fs::rename(oldest, hidden, error);
    if (!error) fs::remove_all(hidden, error);
    if (error)
      throw RuntimeFault(
          concat("removing the old checkpoint ", oldest.string(), " failed: ", error.message()));
  }
}

}  // namespace openmoe
