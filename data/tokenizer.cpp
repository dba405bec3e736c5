#include "data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <fstream>
#include <optional>
#include <sstream>

#include "core/base/check.h"
#include "core/base/error.h"
#include "data/hash.h"

namespace openmoe {
namespace {

constexpr std::int64_t kT5Sentinels = 100;

std::string read_model(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file || bytes.str().empty())
    throw UserError(concat(path,
                           ": cannot be read as a SentencePiece model; --tokenizer takes the "
                           ".model file that spm_train "
                           "wrote"));
  return bytes.str();
}

std::string sentinel_name(std::int64_t k) {
  return "<extra_id_" + std::to_string(k) + ">";
}

// Sentinels at the end of the model's own pieces, with or without the word-start mark.
std::int64_t count_sentinels(const sentencepiece::SentencePieceProcessor& model) {
  std::int64_t count = 0;
  for (int id = model.GetPieceSize() - 1; id >= 0; --id, ++count) {
    const std::string& piece = model.IdToPiece(id);
    const std::string name = sentinel_name(count);
    if (piece != name && piece != "\u2581" + name) break;
  }
  return count;
}

}  // namespace

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor model;
  std::optional<UnigramEncoder> fast;
};

Tokenizer::Tokenizer(const std::string& model_path, std::int64_t num_sentinels)
    : impl_(std::make_unique<Impl>()), path_(model_path) {
  const std::string bytes = read_model(model_path);
  const auto status = impl_->model.LoadFromSerializedProto(bytes);
  if (!status.ok())
    throw UserError(concat(model_path, ": is not a SentencePiece model: ", status.ToString()));
  const auto& model = impl_->model;
  if (model.pad_id() != kPad || model.eos_id() != kEos || model.unk_id() != kUnk)
    throw UserError(
        concat(model_path, ": its pad, eos and unk ids are ", model.pad_id(), ", ", model.eos_id(),
               ", ", model.unk_id(),
               "; they must be 0, 1, 2 (train with spm_train --pad_id=0 --eos_id=1 --unk_id=2)"));
  const std::int64_t own = count_sentinels(model);
  if (num_sentinels >= 0 && own > 0 && num_sentinels != own)
    throw UserError(concat(model_path, ": the model file holds ", own,
                           " sentinels, but --sentinels asks for ", num_sentinels,
                           "; leave --sentinels out"));
  impl_->fast = UnigramEncoder::make(bytes);
  num_pieces_ = model.GetPieceSize() - own;
  num_sentinels_ = own > 0 ? own : num_sentinels >= 0 ? num_sentinels : kT5Sentinels;
  Sha256 hash;
  hash.update(bytes);
  hash.update(concat("sentinels ", num_sentinels_));
  hash_ = hash.finish();
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

void Tokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids,
                       WordCache* cache) const {
  if (impl_->fast)
    impl_->fast->encode(text, ids, cache);
  else
    encode_by_library(text, ids);
}

void Tokenizer::encode_by_library(std::string_view text, std::vector<std::int32_t>& ids) const {
  std::vector<int> found;
  const auto status = impl_->model.Encode({text.data(), text.size()}, &found);
  if (!status.ok())
    throw RuntimeFault(concat("SentencePieceProcessor::Encode failed: ", status.ToString()));
  ids.insert(ids.end(), found.begin(), found.end());
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  std::vector<int> run;
  const auto flush = [&] {
    std::string part;
    const auto status = impl_->model.Decode(run, &part);
    if (!status.ok())
      throw RuntimeFault(concat("SentencePieceProcessor::Decode failed: ", status.ToString()));
    // Decoding drops the word-start mark of the first piece; inside a row that mark is a space.
    if (!run.empty() && !text.empty() && impl_->model.IdToPiece(run[0]).rfind("\u2581", 0) == 0)
      text += ' ';
    text += part;
    run.clear();
  };
  for (const std::int32_t id : ids) {
    if (id > kEos && id < num_pieces_) {
      run.push_back(id);
      continue;
    }
    flush();
    if (id != kPad) text += piece(id);
  }
  flush();
  return text;
}

std::string Tokenizer::piece(std::int32_t id) const {
  if (id < 0 || id >= vocab_size()) return concat("<id ", id, " outside the vocabulary>");
  if (id >= num_pieces_) return sentinel_name(vocab_size() - 1 - id);
  return impl_->model.IdToPiece(id);
}

}  // namespace openmoe
