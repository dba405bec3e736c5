#include "data/h5_library.h"

#include <hdf5.h>

#include "core/base/check.h"
#include "core/base/error.h"

namespace openmoe {
namespace {

FairMutex& library_mutex() {
  static FairMutex instance;
  return instance;
}

}  // namespace

void FairMutex::lock() {
  std::unique_lock<std::mutex> guard(mutex_);
  const std::uint64_t ticket = next_++;
  turn_.wait(guard, [&] { return served_ == ticket; });
}

void FairMutex::unlock() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    ++served_;
  }
  turn_.notify_all();
}

// Turning off the printing is per thread in a thread-safe build, hence at every entry.
H5Lock::H5Lock() : guard_(library_mutex()) {
  // Handles are closed by their owners; the exit hook would retry a write that failed on a full
  // disk.
  static const herr_t no_exit_hook = H5dont_atexit();
  static_cast<void>(no_exit_hook);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

// H5Lexists answers for the last component only and fails when a parent is missing.
bool h5_link_exists(std::int64_t file, const std::string& name) {
  for (std::size_t end = 0; end != std::string::npos;) {
    end = name.find('/', end + 1);
    const std::string part = name.substr(0, end);
    if (part.empty() || part == "/") continue;
    if (H5Lexists(file, part.c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return true;
}

std::string h5_reason() {
  std::string reason;
  const auto keep_last = [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
    if (error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_last, &reason);
  return reason.empty() ? "no reason given by the HDF5 library" : reason;
}

void h5_fault(const char* call, const std::string& path, const std::string& object,
              const std::string& reason) {
  throw RuntimeFault(
      concat(call, " failed on ", path, object.empty() ? "" : ", object ", object, ": ", reason));
}

}  // namespace openmoe
