// Rows of text for the study of a router: what stands where, and which document it belongs to.
#include "data/study_text.h"

#include "test/support/catch.h"

namespace openmoe::test {
namespace {

using Ids = std::vector<std::int32_t>;

// Read in this order: their hashes rise.
StudySource source_of(const std::vector<Ids>& documents, std::int64_t positions) {
  StudySource source{"source", {}, positions};
  for (const Ids& ids : documents) {
    StudyDocument document{ids, "", {}};
    document.hash.high = source.documents.size();
    source.documents.push_back(std::move(document));
  }
  return source;
}

}  // namespace

TEST_CASE("rows of a study are the documents one after the other", "[study_text]") {
  const StudyText text({source_of({{10, 11, 12, 13, 14}, {20, 21}}, 100)}, 4);
  // targets: 10 11 12 13 | 14 eos 20 21 | eos
  CHECK(text.trace().token_ids == Ids{0, 10, 11, 12, 0, 14, 1, 20, 0});
  CHECK(text.trace().document == Ids{0, 0, 0, 0, 0, 0, 0, 1, 1});
  CHECK(text.num_rows() == 3);
  Batch batch;
  text.fill(batch, 1, 3, 3);
  CHECK(batch.targets == Ids{14, 1, 20, 21, 1, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("a long document of a study leaves room for others", "[study_text]") {
  const std::vector<Ids> documents{{10, 11, 12, 13, 14}, {20, 21}, {30, 31, 32}};
  const StudyText whole({source_of(documents, 8)}, 4), cut({source_of(documents, 8)}, 4, 3);
  CHECK(whole.trace().token_ids == Ids{0, 10, 11, 12, 0, 14, 1, 20});
  // targets: 10 11 eos 20 | 21 eos 30 31
  CHECK(cut.trace().token_ids == Ids{0, 10, 11, 1, 0, 21, 1, 30});
  CHECK(cut.trace().document == Ids{0, 0, 0, 0, 1, 1, 1, 2});
  // A document of as many positions, with its end, is whole.
  const StudyText fitting({source_of(documents, 8)}, 4, 6);
  CHECK(fitting.trace().token_ids == whole.trace().token_ids);
}

}  // namespace openmoe::test
