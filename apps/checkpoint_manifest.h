// The manifest of a checkpoint as a struct and as JSON text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/checkpoint.h"
#include "core/placement.h"
#include "core/tensor.h"

namespace openmoe {

struct CheckpointFile {
  std::string name;  // in the checkpoint's folder
  std::int64_t bytes = 0;
  std::string sha256;
};

// A box of a tensor and where it lies ("local") in a dataset of the tensor's name.
struct CheckpointSlice {
  std::string file;
  Piece piece;
};

struct CheckpointTensor {
  std::string name;   // "value/NAME", "stat_row/NAME" or "stat_col/NAME"
  std::string dtype;  // name_of(DType)
  Shape shape;        // global
  std::vector<CheckpointSlice> slices;
};

struct CheckpointManifest {
  CheckpointMeta meta;
  std::int64_t dp = 1, ep = 1, tp = 1;  // the grid that wrote it; no matter to a reader
  std::vector<CheckpointFile> files;
  std::vector<CheckpointTensor> tensors;

  const CheckpointFile& file(const std::string& name) const;  // programmer error when absent
  const CheckpointTensor* find(const std::string& name) const;
};

// What one rank wrote, as text that travels to the rank that writes the manifest.
struct CheckpointPart {
  CheckpointFile file;
  std::vector<CheckpointTensor> tensors;
};
std::string to_text(const CheckpointPart& part);
// Adds a part; slices of one tensor from several parts join.
void add_part(CheckpointManifest& manifest, const std::string& part_text);

// JSON with a SHA-256 of its own content.
std::string to_text(const CheckpointManifest& manifest);
// Throws UserError, naming `origin`, when the text is not a whole, unaltered manifest whose slices
// cover every tensor.
CheckpointManifest parse_manifest(const std::string& text, const std::string& origin);

}  // namespace openmoe
