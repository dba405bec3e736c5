#include "data/batch_stream.h"

#include <mutex>

#include "core/base/check.h"
#include "core/config/recipe_io.h"
#include "data/prefetcher.h"
#include "data/stream_plan.h"

namespace openmoe {

struct BatchStream::Impl {
  StreamPlan plan;
  std::mutex mutex;  // guards plan: the prefetch thread reads from it too
  // Last member: its thread ends before the plan goes.
  std::unique_ptr<Prefetcher> prefetcher;

  void read(const BatchRequest& request, Batch& batch) {
    const Recipe& recipe = plan.recipe();
    OPENMOE_CHECK(
        0 <= request.begin && request.begin <= request.end && request.end <= recipe.data.batch_rows,
        "rows [", request.begin, ", ", request.end, ") of ", recipe.data.batch_rows);
    const std::lock_guard lock(mutex);
    batch.resize(request.end - request.begin, recipe.data.sequence_length);
    for (std::int64_t row = request.begin; row < request.end; ++row)
      plan.build_row(request.step, row, batch, row - request.begin, nullptr);
  }
};

BatchStream::BatchStream(const Recipe& recipe, const std::string& data_folder,
                         const std::vector<Mixture>& mixtures)
    : impl_(new Impl{StreamPlan(recipe, data_folder, mixtures), {}, nullptr}) {
  Impl* impl = impl_.get();
  impl_->prefetcher = std::make_unique<Prefetcher>(
      [impl](const BatchRequest& request, Batch& batch) { impl->read(request, batch); });
}

BatchStream::~BatchStream() = default;

void BatchStream::read(std::int64_t step, std::int64_t begin, std::int64_t end, Batch& batch) {
  if (!impl_->prefetcher->take({step, begin, end}, batch)) impl_->read({step, begin, end}, batch);
}

void BatchStream::prefetch(std::int64_t step, std::int64_t begin, std::int64_t end) {
  impl_->prefetcher->start({step, begin, end});
}

std::vector<std::string> BatchStream::validation_sources(std::int64_t step) const {
  return impl_->plan.validation_sources(step);
}

void BatchStream::read_validation(std::int64_t step, const std::string& source, std::int64_t begin,
                                  std::int64_t end, Batch& batch) {
  const std::lock_guard lock(impl_->mutex);
  batch.resize(end - begin, impl_->plan.recipe().data.sequence_length);
  for (std::int64_t row = begin; row < end; ++row)
    impl_->plan.build_validation_row(step, source, row, batch, row - begin);
}

std::string BatchStream::fingerprint() const {
  return impl_->plan.fingerprint();
}

const std::vector<std::string>& BatchStream::source_names() const {
  return impl_->plan.data().names();
}

std::int64_t BatchStream::phase_of(std::int64_t step) const {
  return phase_at(impl_->plan.recipe(), step);
}

std::int64_t BatchStream::phase_begin(std::int64_t phase) const {
  return first_step_of_phase(impl_->plan.recipe(), phase);
}

RowOrigin BatchStream::origin(std::int64_t step, std::int64_t row) {
  const std::lock_guard lock(impl_->mutex);
  Batch batch;
  batch.resize(1, impl_->plan.recipe().data.sequence_length);
  RowOrigin origin;
  impl_->plan.build_row(step, row, batch, 0, &origin);
  return origin;
}

std::vector<SourceProgress> BatchStream::progress(std::int64_t step) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->plan.progress(step);
}

std::vector<double> BatchStream::asked_shares(std::int64_t step) const {
  return impl_->plan.asked_shares(step);
}

const Tokenizer& BatchStream::tokenizer() const {
  return impl_->plan.data().tokenizer();
}

std::size_t BatchStream::num_open_shards() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->plan.data().num_open_shards();
}

const Recipe& BatchStream::recipe() const {
  return impl_->plan.recipe();
}

}  // namespace openmoe
