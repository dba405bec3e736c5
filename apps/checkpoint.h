// Checkpoints: a folder with one HDF5 file per rank that holds something of its own, and
// manifest.json, which names every tensor, its global shape, the slices and files it lies in, and
// the SHA-256 of each file. The manifest does not depend on the grid that reads it: a checkpoint
// loads on any grid.
//
//   RUN/checkpoints/step-00000100/manifest.json, rank-00000.h5, ...
//
// A folder of that name is complete: it is written beside under a hidden name and renamed at the
// end.
#pragma once

#include <cstdint>
#include <string>

#include "core/param_table.h"
#include "parallel/process_grid.h"

namespace openmoe {

// Everything but tensors that a run needs to go on. The data position is the step: the batch of a
// step is a pure function of recipe, data and step.
struct CheckpointMeta {
  std::int64_t step = 0;              // steps done; the next one to train
  std::int64_t positions = 0;         // positions trained on so far
  std::string recipe_json;            // the resolved recipe
  std::string data_fingerprint;       // BatchStream::fingerprint(), or kImportedWeights
  std::string tokenizer_sha256 = "";  // Tokenizer::hash() of the data; "": not known, as of imports
  std::string trainer_state = "";     // JSON of LossSpikes::state(); "": none
};

// The fingerprint of a checkpoint that no data made: values only, without optimizer statistics.
inline constexpr const char* kImportedWeights = "imported weights";

std::string checkpoint_folder(const std::string& run_folder, std::int64_t step);

// Writes parameters and, where the table has them, optimizer statistics. Replicated tensors are
// written by the first rank, slices by the first rank that holds them, experts by the ranks of
// dp_rank 0. Collective over the world. On
// failure (unwritable folder, full disk) every rank throws the same UserError or RuntimeFault,
// nothing of the attempt stays behind, and checkpoints of earlier steps are as they were. A
// checkpoint of the same step is replaced.
void save_checkpoint(const std::string& folder, const ParamTable& table, const CheckpointMeta& meta,
                     ProcessGrid& grid);

// Fills the allocated tensors of `table`, reading only the slices this rank holds, straight into
// place, after verifying the SHA-256 of each file it reads. With `with_optimizer` also the
// optimizer statistics. Collective over the world. Every rank throws the same UserError when
// something is missing, truncated, altered or of another shape; the contents of the table are then
// undefined.
CheckpointMeta load_checkpoint(const std::string& folder, ParamTable& table, ProcessGrid& grid,
                               bool with_optimizer);

// The manifest's facts without any tensor; on one rank. Throws UserError.
CheckpointMeta read_checkpoint_meta(const std::string& folder);

// The complete checkpoint of the highest step in a run folder; "" when there is none. Throws
// RuntimeFault when the folder cannot be read.
std::string latest_checkpoint(const std::string& run_folder);

// `place` itself where it is a checkpoint, else latest_checkpoint(place): what a user may name.
std::string find_checkpoint(const std::string& place);
// The same; throws UserError when there is none.
std::string require_checkpoint(const std::string& place);

// Removes all but the `keep` complete checkpoints of the highest steps (keep >= 1) and, where
// keep_every > 0, those of its multiples above 0; on one rank.
void prune_checkpoints(const std::string& run_folder, std::int64_t keep,
                       std::int64_t keep_every = 0);

}  // namespace openmoe
