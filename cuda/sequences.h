// Packed sequences of attention, for cuDNN: which runs of which rows, found on the device, since
// the host does not see segment ids.
//
// A sequence is a run of one segment id > 0 in a row. cuDNN gets at most max_sequences(B, T) of
// them, whole rows in the order of the batch, as long as they fit. What is left to this program's
// kernels: rows that do not fit any more, and rows whose ids do not rise from run to run, since one
// of them may be in two pieces. So every batch gives the numbers that the contract asks for, and
// the host never waits to learn which way.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/attention_shapes.h"
#include "cuda/scratch.h"

namespace openmoe::cuda {

// As many sequences as have 512 positions, and one for each row: plans compute with all of them,
// there or not.
inline constexpr std::int64_t max_sequences(std::int64_t B, std::int64_t T) {
  return B * (1 + T / 512);
}

// All on the device. Sequence i < max_sequences: `length[i]` positions of a row; those not there
// have length 0. offset (max_sequences + 1), in elements of (B, T, H, Dh), never falls.
struct Sequences {
  std::int64_t max = 0;
  std::int32_t* length = nullptr;
  std::int64_t* offset = nullptr;
  std::int32_t* begin = nullptr;      // (max) place in the row
  std::int32_t* first = nullptr;      // (B) first sequence of the row; -1: not cuDNN's
  std::int32_t* num_runs = nullptr;   // (B); -1: the row's ids do not rise
  std::int32_t* run_begin = nullptr;  // (B, max)
  std::int32_t* run_end = nullptr;    // (B, max)

  void take(ScratchCursor& cursor, const AttentionShape& shape);
};

void find_sequences(cudaStream_t stream, const Sequences& sequences,
                    const std::int32_t* segment_ids, const AttentionShape& shape);

// Of cuDNN's rows: log_z (B, H, T) = stats (max, H, T) of the position's sequence; log_z and o are
// 0 where padded.
void finish_forward(cudaStream_t stream, float* log_z, __nv_bfloat16* o, const float* stats,
                    const Sequences& sequences, const std::int32_t* segment_ids,
                    const AttentionShape& shape);

// stats (max, H, T) = log_z of cuDNN's rows, 0 elsewhere.
void collect_stats(cudaStream_t stream, float* stats, const float* log_z,
                   const Sequences& sequences, const AttentionShape& shape);

// Of cuDNN's rows: the three gradients are 0 where padded.
void clear_padding(cudaStream_t stream, __nv_bfloat16* dq, __nv_bfloat16* dk, __nv_bfloat16* dv,
                   const Sequences& sequences, const std::int32_t* segment_ids,
                   const AttentionShape& shape);

}  // namespace openmoe::cuda
