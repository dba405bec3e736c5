// openmoe prepare: text -> token shards. See data/prepare.h.
#include "data/prepare.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>

#include "apps/command.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "data/shard.h"

namespace openmoe {
namespace {

using Clock = std::chrono::steady_clock;

// One line on standard error: rewritten in place on a terminal, now and then otherwise.
class PrepareBar {
 public:
  void show(const PrepareProgress& now) {
    const auto time = Clock::now();
    const auto pause =
        is_terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000);
    const bool is_end = now.stored_bytes_done >= now.stored_bytes_total;
    if (time - last_ < pause && !(is_end && is_terminal_)) return;
    last_ = time;
    const double seconds = std::chrono::duration<double>(time - start_).count();
    const double part = now.stored_bytes_total > 0 ? static_cast<double>(now.stored_bytes_done) /
                                                         static_cast<double>(now.stored_bytes_total)
                                                   : 1.0;
    const double left = part > 0.0 ? seconds * (1.0 - part) / part : 0.0;
    std::string bar(static_cast<std::size_t>(20.0 * part), '=');
    bar.resize(20, ' ');
    std::fprintf(stderr,
                 "%s[%s] %3.0f%%  %-14s %9lld documents  %8.2fM tokens  %6.1f MB/s  %.0f s left%s",
                 is_terminal_ ? "\r" : "", bar.c_str(), 100.0 * part, now.source.c_str(),
                 static_cast<long long>(now.documents), static_cast<double>(now.tokens) * 1e-6,
                 static_cast<double>(now.stored_bytes_done) * 1e-6 / seconds, left,
                 is_terminal_ ? "  " : "\n");
    std::fflush(stderr);
    line_open_ = is_terminal_;
  }
  void finish() {
    if (line_open_) std::fputc('\n', stderr);
    line_open_ = false;
  }
  ~PrepareBar() { finish(); }

 private:
  bool is_terminal_ = isatty(STDERR_FILENO) != 0;
  bool line_open_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

void print_report(const PrepareReport& report, const PrepareOptions& options) {
  std::printf("%-16s %7s %10s %12s %10s %12s %11s\n", "source", "shards", "documents", "tokens",
              "held out", "tokens", "bytes/token");
  PrepareCounts sum;
  for (const PrepareSourceReport& entry : report.sources) {
    const PrepareCounts& counts = entry.counts;
    const std::int64_t tokens = counts.tokens[0] + counts.tokens[1];
    std::printf(
        "%-16s %7lld %10lld %12lld %10lld %12lld %11.2f", entry.source.c_str(),
        static_cast<long long>(counts.shards), static_cast<long long>(counts.documents[0]),
        static_cast<long long>(counts.tokens[0]), static_cast<long long>(counts.documents[1]),
        static_cast<long long>(counts.tokens[1]),
        tokens > 0 ? static_cast<double>(counts.text_bytes) / static_cast<double>(tokens) : 0.0);
    if (entry.reused_shards > 0)
      std::printf("   %lld shards were there", static_cast<long long>(entry.reused_shards));
    std::printf("\n");
    sum.duplicates_removed += counts.duplicates_removed;
    sum.empty_documents += counts.empty_documents;
    sum.skipped_records += counts.skipped_records;
    sum.tokens[0] += counts.tokens[0] + counts.tokens[1];
    sum.text_bytes += counts.text_bytes;
    if (counts.documents[0] == 0)
      std::printf("warning: source %s has no training documents\n", entry.source.c_str());
  }
  std::printf(
      "%lld tokens from %.1f MB of text in %.1f s; empty documents %lld, duplicates removed %lld, "
      "bad records skipped %lld\n",
      static_cast<long long>(sum.tokens[0]), static_cast<double>(sum.text_bytes) * 1e-6,
      report.seconds, static_cast<long long>(sum.empty_documents),
      static_cast<long long>(sum.duplicates_removed), static_cast<long long>(sum.skipped_records));
  for (const std::string& problem : report.skipped) std::printf("skipped: %s\n", problem.c_str());
  std::printf("shards and tokenizer are in %s\n", options.out.c_str());
}

struct PrepareCommand {
  PrepareOptions options;
  std::vector<std::string> inputs;
  std::vector<std::string> sources;  // NAME=FILE
  double max_record_mb = 8.0;
  double shard_tokens = 134217728.0;
};

int run_prepare(PrepareCommand& command, CommandContext& context) {
  PrepareOptions& options = command.options;
  for (const std::string& path : command.inputs) options.inputs.push_back({"", path});
  for (const std::string& text : command.sources) {
    const std::size_t at = text.find('=');
    if (at == std::string::npos || at == 0 || at + 1 == text.size())
      throw UserError(
          concat("--source ", text, ": expected NAME=FILE, such as c4=/data/c4-0001.jsonl.gz"));
    options.inputs.push_back({text.substr(0, at), text.substr(at + 1)});
  }
  options.max_record_bytes = static_cast<std::int64_t>(command.max_record_mb * 1048576.0);
  options.shard_tokens = static_cast<std::int64_t>(command.shard_tokens);
  options.num_threads = context.num_threads;
  options.world_rank = context.mpi.world_rank();
  options.world_size = context.mpi.world_size();
  PrepareBar bar;
  const bool shows = context.mpi.world_rank() == 0;
  const PrepareReport report = prepare(options, [&](const PrepareProgress& now) {
    if (shows) bar.show(now);
  });
  bar.finish();
  if (!report.sources.empty()) print_report(report, options);
  return kExitSuccess;
}

}  // namespace

void register_prepare(CLI::App& app, CommandContext& context) {
  const auto command = std::make_shared<PrepareCommand>();
  PrepareOptions& options = command->options;
  CLI::App* sub =
      app.add_subcommand("prepare", "tokenise text into HDF5 shards, one folder per source");
  sub->add_option("--tokenizer", options.tokenizer,
                  "SentencePiece .model file (pad 0, eos 1, unk 2)")
      ->required();
  sub->add_option("--input", command->inputs,
                  "JSON Lines file (.jsonl, .gz, .zst), folder of them, folder of plain text, or "
                  "one text file; the source is named "
                  "after it");
  sub->add_option("--source", command->sources,
                  "NAME=FILE: the same with a name for the source; may be repeated");
  sub->add_option("--out", options.out, "data folder to write or continue")->required();
  sub->add_option("--sentinels", options.num_sentinels,
                  "sentinels to append after the model's pieces (umT5: 300); default: those in the "
                  "model file, else 100")
      ->check(CLI::Range(0, 100000));
  sub->add_option("--text-field", options.text_field,
                  "JSON key of the text; default: text, content or conversation");
  sub->add_option("--validation-fraction", options.validation_fraction,
                  "share of documents held out, chosen by hash of the text")
      ->capture_default_str();
  sub->add_option("--max-record-mb", command->max_record_mb,
                  "longest line or text file accepted, in MiB")
      ->check(CLI::Range(0.001, 4096.0))
      ->capture_default_str();
  sub->add_option("--shard-tokens", command->shard_tokens,
                  "tokens after which a new shard is begun")
      ->check(CLI::Range(1.0, 4e9))
      ->capture_default_str();
  sub->add_option("--deflate", options.deflate,
                  "gzip level of the tokens, 0 to 9; 0 (none) is fastest to train from")
      ->capture_default_str();
  sub->add_flag("--remove-duplicates", options.remove_duplicates,
                "keep one of documents with the same text, over all sources");
  sub->add_flag("--skip-bad-records", options.skip_bad_records,
                "leave unusable records out and count them, instead of stopping");
  sub->callback([command, &context] {
    context.run = [command, &context] { return run_prepare(*command, context); };
  });
}

}  // namespace openmoe
