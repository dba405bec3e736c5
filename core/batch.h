// The rows that a step trains on, as host arrays.
#pragma once

#include <cstdint>
#include <vector>

namespace openmoe {

// Rows of the global batch. Each array is (num_rows, sequence_length), row-major.
struct Batch {
  std::int64_t num_rows = 0;
  std::int64_t sequence_length = 0;
  std::vector<std::int32_t> inputs;       // token ids; id 0 at the start of each segment
  std::vector<std::int32_t> targets;      // token ids; 0 where padded
  std::vector<float> loss_weights;        // 0 or 1 in pretraining
  std::vector<std::int32_t> segment_ids;  // 1, 2, ... within a row; 0 marks padding
  std::vector<std::int32_t> row_sources;  // (num_rows): index of the first source

  void resize(std::int64_t rows, std::int64_t length) {
    num_rows = rows;
    sequence_length = length;
    const auto n = static_cast<std::size_t>(rows * length);
    inputs.assign(n, 0);
    targets.assign(n, 0);
    loss_weights.assign(n, 0.0f);
    segment_ids.assign(n, 0);
    row_sources.assign(static_cast<std::size_t>(rows), 0);
  }
};

}  // namespace openmoe
