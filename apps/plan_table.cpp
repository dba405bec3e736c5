#include "apps/plan_table.h"

#include <cstdint>
#include <cstdio>

namespace openmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMiB = 1 << 20;

class Table {
 public:
  void print(const char* text) { text_ += text; }
  template <typename... Values>
  void print(const char* format, Values... values) {
    char text[240];
    std::snprintf(text, sizeof text, format, values...);
    text_ += text;
  }
  void line(const std::string& what, const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    print("%-26s %20s\n", what.c_str(), text);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

void print_collectives(Table& table, const Json& plan) {
  if (plan["collectives"].empty()) {
    table.print("collectives per rank and step: none, a single rank\n");
    return;
  }
  table.print(
      "collectives per rank and step, with the bytes that the rank brings: if experts are chosen "
      "equally often, and at most\n");
  table.print("  %-9s %6s  %-32s %9s %12s %12s\n", "group", "ranks", "collective", "calls", "MiB",
              "at most");
  for (const Json& row : plan["collectives"])
    table.print("  %-9s %6lld  %-32s %9lld %12.3f %12.3f\n",
                row["group"].get<std::string>().c_str(), row["ranks"].get<long long>(),
                row["verb"].get<std::string>().c_str(), row["calls"].get<long long>(),
                row["bytes"].get<double>() / kMiB, row["most_bytes"].get<double>() / kMiB);
}

void print_exchange(Table& table, const Json& plan) {
  if (!plan.contains("exchange")) return;
  table.print("rows to and from experts: %s\n", plan["exchange"].get<std::string>().c_str());
}

void print_time(Table& table, const Json& plan) {
  const Json& time = plan["time"];
  const double step = time["step_seconds"];
  const auto share = [&](const std::string& what, double seconds) {
    table.print("%-38s %12.3f %6.1f%%\n", what.c_str(), 1e3 * seconds, 100.0 * seconds / step);
  };
  table.print("time of a step on machine %s, ms, computed\n",
              plan["machine"]["name"].get<std::string>().c_str());
  share("  compute", time["compute_seconds"]);
  for (const auto& part : time["parts"].items())
    if (part.key() != "optimizer" && part.key() != "gradient reduction")
      share("    " + part.key(), part.value());
  share("  optimizer", time["optimizer_seconds"]);
  share("  exposed communication", time["exposed_communication_seconds"]);
  for (const auto& group : time["communication"].items()) {
    char name[80];
    std::snprintf(name, sizeof name, "    %s, %lld ranks on %lld node%s", group.key().c_str(),
                  group.value()["ranks"].get<long long>(), group.value()["nodes"].get<long long>(),
                  group.value()["nodes"].get<long long>() == 1 ? "" : "s");
    share(name, group.value()["seconds"]);
  }
  share("  step", step);
  table.line("tokens/s", "%.4g", time["tokens_per_second"]);
  table.line("days of the run", "%.2f", time["days"]);
  table.line("share of the peak", "%.3f", time["share_of_peak"]);
}

}  // namespace

std::string plan_table(const Json& plan) {
  Table table;
  table.print("%s\n", plan["name"].get<std::string>().c_str());
  const Json& parameters = plan["parameters"];
  table.line("parameters of the model", "%.0f", parameters["total"]);
  table.line("  active per token", "%.0f", parameters["active"]);
  table.line("  with embedding and head", "%.0f", parameters["active_with_embedding"]);
  table.line("FLOPs per token", "%.4g", plan["flops_per_token"]);
  table.line("positions per step", "%.0f", plan["positions_per_step"]);
  table.line("FLOPs per step", "%.4g", plan["flops_per_step"]);
  table.line("positions of the run", "%.0f", plan["positions"]);
  table.line("FLOPs of the run", "%.4g", plan["flops"]);
  const Json& grid = plan["grid"];
  table.print(
      "memory per rank (MiB), %lld ranks = dp %lld x ep %lld x tp %lld, %lld rows at once\n",
      grid["ranks"].get<long long>(), grid["dp"].get<long long>(), grid["ep"].get<long long>(),
      grid["tp"].get<long long>(), grid["micro_batch_rows"].get<long long>());
  for (const auto& item : plan["memory"].items())
    table.line("  " + item.key(), "%.1f", item.value().get<double>() / kMiB);
  print_exchange(table, plan);
  print_collectives(table, plan);
  if (plan.contains("time")) print_time(table, plan);
  return table.text();
}

}  // namespace openmoe
