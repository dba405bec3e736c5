// The cuDNN library, opened at run time: an executable starts where there is none.
#pragma once

#include <string>

namespace openmoe::cuda {

// "" or why cuDNN cannot be used. The first call opens it for the process, for good.
const std::string& open_cudnn();

}  // namespace openmoe::cuda
