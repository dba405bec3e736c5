// Creating and ending streams and events: for the API calls alone.
#pragma once

#include "test/cuda_emulation/runtime/streams.h"

namespace cuda_emulation {

cudaStream_t create_stream(bool non_blocking);
void destroy_stream(CUstream_st& stream);
cudaEvent_t create_event(bool timed);
void destroy_event(CUevent_st& event);

}  // namespace cuda_emulation
