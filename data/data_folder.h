// DataFolder: the sources of a run, opened and checked against each other and their tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/document_stream.h"
#include "data/tokenizer.h"

namespace openmoe {

class DataFolder {
 public:
  // Throws UserError: no such folder, a source without shards or training tokens, damaged shards,
  // sources of different tokenizers, a tokenizer file that is not that of the shards.
  DataFolder(const std::string& path, const std::vector<std::string>& source_names);

  const std::vector<std::string>& names() const { return names_; }
  std::size_t index_of(const std::string& name) const;  // programmer error when absent
  SourceReader& train(std::size_t source) { return *sources_[source].train; }
  SourceReader* validation(std::size_t source) const { return sources_[source].validation.get(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  std::size_t num_open_shards() const { return open_shards_.size(); }
  // SHA-256 over tokenizer and content of all training shards.
  std::string identity() const;

 private:
  struct Source {
    std::unique_ptr<SourceReader> train;
    std::unique_ptr<SourceReader> validation;  // null: no held-out documents
  };
  void open_tokenizer(const std::string& path);

  std::vector<std::string> names_;
  OpenShards open_shards_;  // before the sources, which use it
  std::vector<Source> sources_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace openmoe
