// OpenShards: how many shards of a data folder may be open at a time. A source may have thousands
// of them, a process may have a thousand open files: the one not read for longest is closed, and
// opens again when it is read.
#pragma once

#include <cstddef>
#include <list>

namespace openmoe {

// Something that holds an open file and can do without it. Leaves its OpenShards before it goes.
class OpenShard {
 public:
  virtual ~OpenShard() = default;
  virtual void close_file() = 0;

 private:
  friend class OpenShards;
  std::list<OpenShard*>::iterator place_;
  bool is_listed_ = false;
};

// Not thread-safe. Outlives its shards.
class OpenShards {
 public:
  static constexpr std::size_t kLimit = 128;
  explicit OpenShards(std::size_t limit = kLimit) : limit_(limit) {}
  OpenShards(const OpenShards&) = delete;
  OpenShards& operator=(const OpenShards&) = delete;

  // `shard` is about to be read; closes others so that at most the limit are open.
  void use(OpenShard& shard) {
    if (shard.is_listed_) {
      recent_.splice(recent_.begin(), recent_, shard.place_);
      return;
    }
    while (recent_.size() >= limit_) {
      OpenShard& oldest = *recent_.back();
      forget(oldest);
      oldest.close_file();
    }
    shard.place_ = recent_.insert(recent_.begin(), &shard);
    shard.is_listed_ = true;
  }
  void forget(OpenShard& shard) {
    if (!shard.is_listed_) return;
    recent_.erase(shard.place_);
    shard.is_listed_ = false;
  }
  std::size_t size() const { return recent_.size(); }

 private:
  std::size_t limit_;
  std::list<OpenShard*> recent_;  // most recently read first
};

}  // namespace openmoe
