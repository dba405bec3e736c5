// CudnnAttention of an executable that was built without cuDNN: it has no plans, and says so.
#include "cuda/cudnn_attention.h"

#include "core/base/check.h"

namespace openmoe::cuda {

struct CudnnAttention::State {
  Plan none{
      "this openmoe was built without cuDNN: install cuDNN for development, let scripts/setup.sh "
      "fetch the headers of cudnn-frontend, and configure and build again",
      0};
};

CudnnAttention::CudnnAttention(cudaStream_t) : state_(std::make_unique<State>()) {}
CudnnAttention::~CudnnAttention() = default;

const CudnnAttention::Plan& CudnnAttention::plan(const AttentionProblem&) {
  return state_->none;
}

void CudnnAttention::run(const AttentionProblem&, const AttentionData&) {
  OPENMOE_CHECK(false, "attention without a plan");
}

std::string CudnnAttention::version() const {
  return "cuDNN";
}

std::int64_t CudnnAttention::num_plans() const {
  return 0;
}

}  // namespace openmoe::cuda
