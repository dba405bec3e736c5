// Attention as emulated cuDNN computes it.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "cudnn_frontend.h"

namespace cuda_emulation {

using AttentionPointers = std::unordered_map<std::int64_t, void*>;

// Of the deterministic backward on sm_90 a matrix of lengths for each sequence and head, as cuDNN
// 9.19 has it.
std::int64_t attention_workspace_bytes(const cudnn_frontend::graph::AttentionNode& node);

// Runs as part of the running operation, on `device`; every range it touches is checked. Ends the
// program's call where lengths and offsets make no sense.
void run_attention(const cudnn_frontend::graph::AttentionNode& node,
                   const AttentionPointers& pointers, void* workspace, int device);

}  // namespace cuda_emulation
