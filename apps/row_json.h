// A row of a batch as the JSON object that `openmoe data show --json` prints and that a dumped step
// consists of: step, row, source, examples, inputs, targets, loss_weights, segment_ids, stretches
// (positions that share segment and loss mark, as text) and documents.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/batch.h"
#include "data/batch_stream.h"

namespace openmoe {

// Row `row` of `batch`, which holds rows of `step` from `first_row` of the global batch on.
nlohmann::ordered_json row_as_json(BatchStream& stream, std::int64_t step, std::int64_t first_row,
                                   const Batch& batch, std::int64_t row);

// On one line; bytes that are not UTF-8 are replaced.
std::string to_line(const nlohmann::ordered_json& row);

}  // namespace openmoe
