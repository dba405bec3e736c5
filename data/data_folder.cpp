#include "data/data_folder.h"

#include <algorithm>
#include <filesystem>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/hash.h"

namespace openmoe {

DataFolder::DataFolder(const std::string& path, const std::vector<std::string>& source_names)
    : names_(source_names) {
  OPENMOE_CHECK(!names_.empty(), "no sources");
  if (!std::filesystem::is_directory(path))
    throw UserError(concat(path,
                           ": no such data folder; make it with: openmoe prepare --tokenizer "
                           "M.model --input X.jsonl --out ",
                           path));
  for (const std::string& name : names_) {
    Source source;
    source.train = std::make_unique<SourceReader>(path, name, Split::train, &open_shards_);
    if (source.train->num_tokens() == 0)
      throw UserError(concat("source \"", name, "\" in ", path,
                             " is empty: its shards hold no training tokens"));
    source.validation =
        std::make_unique<SourceReader>(path, name, Split::validation, &open_shards_);
    if (source.validation->num_tokens() == 0) source.validation.reset();
    sources_.push_back(std::move(source));
  }
  open_tokenizer(path);
}

void DataFolder::open_tokenizer(const std::string& path) {
  const ShardHeader& header = sources_.front().train->header();
  tokenizer_ = std::make_unique<Tokenizer>(path + "/" + kTokenizerFile, header.tokenizer_sentinels);
  for (std::size_t s = 0; s < sources_.size(); ++s) {
    const std::string& hash = sources_[s].train->header().tokenizer_sha256;
    if (hash != tokenizer_->hash())
      throw UserError(concat("source \"", names_[s], "\" was prepared with another tokenizer (",
                             hash.substr(0, 12), "...) than ", tokenizer_->path(), " with ",
                             header.tokenizer_sentinels, " sentinels (",
                             tokenizer_->hash().substr(0, 12), "...); prepare it again"));
  }
}

std::size_t DataFolder::index_of(const std::string& name) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  OPENMOE_CHECK(found != names_.end(), "source ", name);
  return static_cast<std::size_t>(found - names_.begin());
}

std::string DataFolder::identity() const {
  Sha256 hash;
  hash.update(tokenizer_->hash());
  for (const Source& source : sources_) hash.update(concat("\n", source.train->content_identity()));
  return hash.finish();
}

}  // namespace openmoe
