// What every call of the HDF5 library needs: the lock, and errors with the library's own reason.
// For h5_*.cpp only.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

namespace openmoe {

// First come, first served: a thread that takes it again and again lets others in between.
class FairMutex {
 public:
  void lock();
  void unlock();

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  std::uint64_t next_ = 0, served_ = 0;
};

// One lock for the library, which may be built without thread safety. Held around every use of it,
// with its error printing off.
class H5Lock {
 public:
  H5Lock();

 private:
  std::lock_guard<FairMutex> guard_;
};

// Whether an object of this path is there.
bool h5_link_exists(std::int64_t file, const std::string& name);

// The innermost message of the library's error stack: the actual reason.
std::string h5_reason();

// Throws RuntimeFault; `object` "": the file itself.
[[noreturn]] void h5_fault(const char* call, const std::string& path, const std::string& object,
                           const std::string& reason);

// `id`, the result of `call`; a negative one is a fault.
template <typename Result>
Result h5_check(Result id, const char* call, const std::string& path, const std::string& object) {
  if (id < 0) h5_fault(call, path, object, h5_reason());
  return id;
}

}  // namespace openmoe
