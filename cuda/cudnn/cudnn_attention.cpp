#include "cuda/cudnn_attention.h"

#include <exception>
#include <map>
#include <unordered_map>

#include "core/base/check.h"
#include "core/base/error.h"
#include "cuda/cudnn/attention_graph.h"
#include "cuda/cudnn/library.h"

namespace openmoe::cuda {
namespace {

// From here on a plan for many sequences may be given fewer, the others of length 0.
constexpr std::int64_t kOldestVersion = 90600;

std::string version_words() {
  const std::int64_t version = cudnn_version();
  return concat("cuDNN ", version / 10000, ".", version / 100 % 100, ".", version % 100);
}

// What can be said without asking cuDNN, in better words than its own.
std::string refuse_early(const AttentionProblem& problem) {
  if (problem.dtype != DType::bf16)
    return concat("cuDNN's attention is for bf16, and run.compute_type is ",
                  name_of(problem.dtype));
  if (problem.head_dim % 8 != 0)
    return concat("cuDNN's attention is for heads of a multiple of 8, and model.head_dim is ",
                  problem.head_dim);
  return "";
}

}  // namespace

struct CudnnAttention::State {
  struct Built {
    Plan plan;
    std::unique_ptr<AttentionGraph> graph;
  };
  cudaStream_t stream = nullptr;
  CudnnHandle handle;
  std::map<AttentionProblem, Built> built;

  // Returns why there is no plan, or "".
  std::string build(const AttentionProblem& problem, Built& result) {
    if (std::string words = refuse_early(problem); !words.empty()) return words;
    if (std::string words = open_cudnn(); !words.empty()) return words;
    if (cudnn_version() < kOldestVersion)
      return concat(version_words(),
                    " is installed, and attention of packed rows needs 9.6 or newer");
    if (std::string words = handle.open(stream); !words.empty()) return words;
    result.graph = std::make_unique<AttentionGraph>(problem, AttentionTarget{handle.get(), "", 0});
    if (std::string words = result.graph->lower(); !words.empty()) return words;
    if (std::string words = result.graph->find(); !words.empty()) return words;
    if (std::string words = result.graph->compile(); !words.empty()) return words;
    result.plan.workspace_bytes = result.graph->workspace_bytes();
    return "";
  }
};

CudnnAttention::CudnnAttention(cudaStream_t stream) : state_(std::make_unique<State>()) {
  state_->stream = stream;
}
CudnnAttention::~CudnnAttention() = default;

const CudnnAttention::Plan& CudnnAttention::plan(const AttentionProblem& problem) {
  const auto [found, fresh] = state_->built.try_emplace(problem);
  State::Built& built = found->second;
  if (!fresh) return built.plan;
  try {
    built.plan.refusal = state_->build(problem, built);
  } catch (const std::exception& error) {  // the frontend's, where it cannot return words
    built.plan.refusal = error.what();
  }
  if (!built.plan.refusal.empty()) built.graph.reset();
  return built.plan;
}

void CudnnAttention::run(const AttentionProblem& problem, const AttentionData& data) {
  const auto found = state_->built.find(problem);
  OPENMOE_CHECK(found != state_->built.end() && found->second.graph != nullptr,
                "attention without a plan");
  // The frontend takes what is read and what is written alike.
  const auto pointer = [](const void* p) { return const_cast<void*>(p); };
  std::unordered_map<std::int64_t, void*> pack{{kQ, pointer(data.q)},
                                               {kK, pointer(data.k)},
                                               {kV, pointer(data.v)},
                                               {kO, data.o},
                                               {kStats, data.stats},
                                               {kLengths, pointer(data.lengths)},
                                               {kOffsets, pointer(data.offsets)}};
  if (problem.backward)
    pack.insert(
        {{kGradO, pointer(data.d_o)}, {kGradQ, data.dq}, {kGradK, data.dk}, {kGradV, data.dv}});
  const std::string words = found->second.graph->execute(pack, data.workspace);
  if (!words.empty())
    throw RuntimeFault(concat("cuDNN: attention ", problem.backward ? "backward" : "forward",
                              " failed: ", words, ", at ", __FILE__, ":", __LINE__));
}

std::string CudnnAttention::version() const {
  return state_->handle.get() == nullptr ? "cuDNN" : version_words();
}

std::int64_t CudnnAttention::num_plans() const {
  return static_cast<std::int64_t>(state_->built.size());
}

}  // namespace openmoe::cuda
