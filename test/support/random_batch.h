// Batches of random tokens.
#pragma once

#include <cstdint>

#include "core/base/rng.h"
#include "core/batch.h"
#include "core/config/recipe.h"

namespace openmoe::test {

// Rows [begin, begin + rows) of one global batch, the same on every grid; the last ten positions of
// every third row are padding.
inline Batch random_rows(const Recipe& recipe, std::int64_t begin, std::int64_t rows) {
  Batch batch;
  batch.resize(rows, recipe.data.sequence_length);
  const auto length = static_cast<std::size_t>(batch.sequence_length);
  for (std::int64_t row = begin; row < begin + rows; ++row) {
    Rng rng(7, stream_id("random rows", static_cast<std::uint64_t>(row)));
    for (std::size_t t = 0; t + (row % 3 == 0 ? 10 : 0) < length; ++t) {
      const std::size_t i = static_cast<std::size_t>(row - begin) * length + t;
      batch.inputs[i] = static_cast<std::int32_t>(
          rng.next_below(static_cast<std::uint64_t>(recipe.model.vocab_size)));
      batch.targets[i] = batch.inputs[i];
      batch.loss_weights[i] = 1.0f;
      batch.segment_ids[i] = 1;
    }
  }
  return batch;
}

}  // namespace openmoe::test
