// Bytes of scratch memory that ops take, at most, of these sizes; each is defined beside its op.
#pragma once

#include <cstdint>

namespace openmoe::cuda {

std::int64_t sum_of_squares_scratch();
std::int64_t embedding_backward_scratch(std::int64_t N, std::int64_t D);
std::int64_t norm_backward_scratch(std::int64_t N, std::int64_t D);
std::int64_t cross_entropy_scratch(std::int64_t rows);
// Shared matrices take the most.
std::int64_t adafactor_factored_scratch(std::int64_t stack, std::int64_t R, std::int64_t C);
std::int64_t adafactor_full_scratch(std::int64_t n);

}  // namespace openmoe::cuda
