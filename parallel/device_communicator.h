// DeviceCommunicator: the verbs of a Communicator where tensors are in the memory of a device.
// Spans of f32 and bf16 and the rows of all_to_all_rows are device memory; these calls are ordered
// with the ops of the device: they read what earlier ops wrote, and later ops read what they wrote
// (of those in the background, after the wait). All else (numbers in f64 and i64, bytes) is host
// memory, and goes through the group's communicator of the host. No CUDA type here.
#pragma once

#include <memory>
#include <utility>

#include "core/ops.h"
#include "parallel/communicator.h"

namespace openmoe {

class DeviceCommunicator : public Communicator {
 public:
  int size() const override { return host_.size(); }
  int rank_in_group() const override { return host_.rank_in_group(); }
  std::string description() const override { return host_.description(); }
  void set_name(const char* name) override { host_.set_name(name); }

  using Communicator::all_gather;
  using Communicator::all_reduce_sum;
  void all_reduce_sum(std::span<double> data) override { host_.all_reduce_sum(data); }
  void all_reduce_sum(std::span<std::int64_t> data) override { host_.all_reduce_sum(data); }
  void all_reduce_max(std::span<std::int64_t> data) override { host_.all_reduce_max(data); }
  void all_to_all(std::span<const std::int64_t> sent, std::span<std::int64_t> received,
                  std::int64_t count) override {
    host_.all_to_all(sent, received, count);
  }
  std::vector<std::string> all_gather(const std::string& bytes) override {
    return host_.all_gather(bytes);
  }
  void broadcast(std::string& bytes, int root) override { host_.broadcast(bytes, root); }
  void barrier() override { host_.barrier(); }

 protected:
  // `owned` may be null where someone else owns `host`, the same ranks on the host.
  explicit DeviceCommunicator(Communicator& host, std::unique_ptr<Communicator> owned = nullptr)
      : owned_(std::move(owned)), host_(host) {}
  Communicator& host() { return host_; }
  const Communicator& host() const { return host_; }

 private:
  std::unique_ptr<Communicator> owned_;
  Communicator& host_;
};

// Through host memory and `group`: the fallback where devices have no network of their own, and the
// cross-check of one that has. `ops` and `group` must outlive it.
std::unique_ptr<Communicator> make_staged_communicator(Ops& ops, Communicator& group);

}  // namespace openmoe
