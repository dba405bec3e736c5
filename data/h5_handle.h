// H5Handle: move-only owner of one HDF5 identifier. Its types are those of hid_t and herr_t, so
// that hdf5.h stays out of headers.
#pragma once

#include <cstdint>
#include <utility>

namespace openmoe {

class H5Handle {
 public:
  using Closer = int (*)(std::int64_t);
  H5Handle() = default;
  H5Handle(std::int64_t id, Closer closer) : id_(id), closer_(closer) {}
  ~H5Handle() { reset(); }
  H5Handle(H5Handle&& other) noexcept
      : id_(std::exchange(other.id_, kNone)), closer_(other.closer_) {}
  H5Handle& operator=(H5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(closer_, other.closer_);
    return *this;
  }
  std::int64_t get() const { return id_; }
  int reset() {
    const std::int64_t id = std::exchange(id_, kNone);
    return id >= 0 ? closer_(id) : 0;
  }

 private:
  static constexpr std::int64_t kNone = -1;
  std::int64_t id_ = kNone;
  Closer closer_ = nullptr;
};

}  // namespace openmoe
