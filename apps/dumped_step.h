// The rows of one step as a file, for a step that went wrong.
#pragma once

#include <cstdint>
#include <string>

#include "data/batch_stream.h"

namespace openmoe {

// Writes the whole global batch of `step` to RUN/nonfinite/step-00000012.jsonl, a line per row as
// `openmoe data show --json` prints it, and returns that name. On one rank. Throws RuntimeFault
// when the file cannot be written.
std::string dump_step(BatchStream& stream, std::int64_t step, const std::string& run_folder);

}  // namespace openmoe
