// libFuzzer target: the input is the pickle of a state dict, without the archive around it. Built
// by run.sh.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/base/error.h"
#include "data/torch_pickle.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    for (const openmoe::PickledTensor& tensor :
         openmoe::parse_state_dict({reinterpret_cast<const char*>(data), size}, "input")) {
      // What the reader relies on: the farthest element lies inside the storage.
      if (tensor.weight.num_elements() == 0) continue;
      __int128 last = tensor.offset;
      for (std::size_t axis = 0; axis < tensor.strides.size(); ++axis)
        last += static_cast<__int128>(tensor.weight.shape[axis] - 1) * tensor.strides[axis];
      if (tensor.offset < 0 || last >= tensor.storage_elements) std::abort();
    }
  } catch (const openmoe::UserError&) {
  }
  return 0;
}
