// What a rehearsed step (plan_step.h) adds up to: every collective with its bytes, and with a
// machine also the time of a step.
//
// The clock runs through the step in the order in which the rank does things. A product takes the
// longer of its arithmetic at the reached peak and its bytes at the reached memory bandwidth; other
// ops take their bytes. Collectives are blocking, but for sums of gradients started in buckets and
// the exchanges of rows: each of the two kinds runs one after the other beside the products, and
// what is left of a kind's when it is waited for is exposed. Time of a group of n ranks, m of them
// on a node and k = n / m nodes, bytes B of one rank, bandwidths b in the node and b' between
// nodes, latency l of the slower link:
//   sum over ranks  2 (m-1)/m B/b + 2 (k-1)/k (B/m)/b' + 2 l log2 n  (rings in the node and between
//                   the ranks of one place in their nodes, each with its part)
//   the two halves of a sum (reduce_scatter; all_gather of pieces that are B together)
//                   half of that
//   broadcast       as a sum
//   exchange        the longer of B (m-1)/(n-1)/b and B (n-m)/(n-1)/b', + l log2 n
// Waiting for slower ranks, launches of kernels, imbalance of experts and contention are left out.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "apps/machine.h"
#include "apps/plan_step.h"

namespace openmoe {

// Where the ranks of a group are: `stride` apart in the world, whose nodes are blocks of ranks.
struct GroupPlace {
  std::int64_t ranks = 1;
  std::int64_t stride = 1;

  std::int64_t per_node(const Machine& machine) const;
  std::int64_t nodes(const Machine& machine) const;
};

// Of a group as ProcessGrid names it: world, data, expert, replicas or tensor.
GroupPlace place_of(const std::string& group, const RehearsalGrid& grid);

// Bytes as a collective observer counts them: those that a rank brings, and to all_to_all_rows
// those that it sends away.
double sum_seconds(const Machine& machine, const GroupPlace& place, double bytes);
double exchange_seconds(const Machine& machine, const GroupPlace& place, double bytes);

class PlanRecord : public StepListener {
 public:
  struct Collective {
    std::string group, verb;
    std::int64_t ranks = 0;  // of the group
    std::int64_t calls = 0, bytes = 0;
    double seconds = 0.0;
  };
  // A part of the network: its ops, without collectives.
  struct Part {
    std::string name;
    double seconds = 0.0, flops = 0.0;
  };

  explicit PlanRecord(const RehearsalGrid& grid) : grid_(grid) {}
  // With a machine, time is counted too.
  PlanRecord(const RehearsalGrid& grid, const Machine& machine) : grid_(grid), machine_(machine) {}

  // By group and verb in the order of their first call; groups of one rank move nothing and are
  // left out.
  const std::vector<Collective>& collectives() const { return collectives_; }
  const std::vector<Part>& parts() const { return parts_; }
  double step_seconds() const { return now_; }
  double exposed_seconds() const { return exposed_; }  // in which only collectives are under way

  void on_repeat(std::int64_t times) override { times_ = times; }
  void on_work(const OpWork& work) override;
  void begin_collective(const CollectiveCall&) override {}
  void end_collective(const CollectiveCall& call) override;
  void add(const char*, double) override {}
  void enter(const char* part) override { part_ = part; }

 private:
  double seconds_of(const OpWork& work) const;
  double seconds_of(const CollectiveCall& call) const;
  Collective& find(const CollectiveCall& call);
  Part& current_part();

  RehearsalGrid grid_;
  std::optional<Machine> machine_;
  std::vector<Collective> collectives_;
  std::vector<Part> parts_;
  const char* part_ = "other";
  std::int64_t times_ = 1;
  double now_ = 0.0;
  double sums_end_ = 0.0, rows_end_ = 0.0;  // of what was started last
  std::deque<double> row_ends_;             // of the exchanges that were not yet waited for
  double exposed_ = 0.0;
};

}  // namespace openmoe
