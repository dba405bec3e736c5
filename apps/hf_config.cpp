#include "apps/hf_config.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/config/config_errors.h"
#include "core/config/json_document.h"

namespace openmoe {
namespace {

// Keys that every released config.json has and that are not ours to decide.
constexpr const char* kReleasedConfig = R"({
  "architectures": ["OpenMoeForCausalLM"],
  "auto_map": {"AutoModelForCausalLM": "modeling_openmoe.OpenMoeForCausalLM"},
  "model_type": "llama",
  "attention_bias": false,
  "bos_token_id": 0,
  "dropout_rate": 0.0,
  "enable_comm_overlap": false,
  "enable_hierarchical_alltoall": false,
  "enable_kernel": false,
  "enable_load_balance": false,
  "eos_token_id": 1,
  "expert_parallel": null,
  "initializer_range": 0.02,
  "label_smoothing": 0.0,
  "load_balance_beam_width": 8,
  "load_balance_group_swap_factor": 0.4,
  "load_balance_tolerance": 0.1,
  "mlp_gated": true,
  "pad_token_id": 0,
  "pretraining_tp": 1,
  "rope_scaling": null,
  "router_drop_tks": true,
  "router_noisy_policy": null,
  "router_topk": 2,
  "use_cache": true
})";

class ConfigReader {
 public:
  ConfigReader(const Json& config, const std::string& origin, ConfigErrors& errors)
      : config_(config), origin_(origin), errors_(errors) {}

  // A whole number that must be there.
  std::int64_t count(const char* key) {
    const auto found = config_.find(key);
    if (found == config_.end()) {
      errors_.add(origin_, key, "is missing, allowed: a whole number");
      return 1;
    }
    const bool fits = found->is_number_unsigned()
                          ? found->get<std::uint64_t>() <= std::uint64_t{1} << 53
                          : found->is_number_integer() && found->get<std::int64_t>() >= 0;
    if (fits) return found->get<std::int64_t>();
    errors_.add(origin_, key, "found " + describe_json(*found) + ", allowed: a whole number");
    return 1;
  }
  std::int64_t count(const char* key, std::int64_t fallback) {
    return has(key) ? count(key) : fallback;
  }
  double number(const char* key, double fallback) {
    if (!has(key)) return fallback;
    const Json& value = config_.at(key);
    if (value.is_number() && std::isfinite(value.get<double>())) return value.get<double>();
    errors_.add(origin_, key, "found " + describe_json(value) + ", allowed: a number");
    return fallback;
  }
  bool truth(const char* key, bool fallback) {
    if (!has(key)) return fallback;
    const Json& value = config_.at(key);
    if (value.is_boolean()) return value.get<bool>();
    errors_.add(origin_, key, "found " + describe_json(value) + ", allowed: true or false");
    return fallback;
  }
  std::string text(const char* key, const char* fallback) {
    if (!has(key)) return fallback;
    const Json& value = config_.at(key);
    if (value.is_string()) return value.get<std::string>();
    errors_.add(origin_, key, "found " + describe_json(value) + ", allowed: a text");
    return fallback;
  }
  // A key that may be absent but must not say anything else.
  void expect(const char* key, const Json& only) {
    const auto found = config_.find(key);
    if (found == config_.end() || *found == only) return;
    errors_.add(origin_, key,
                "found " + describe_json(*found) + ", allowed: " + only.dump() +
                    ", which is all that OpenMoE has");
  }
  void fail(const char* key, const std::string& problem) { errors_.add(origin_, key, problem); }

 private:
  bool has(const char* key) const {
    const auto found = config_.find(key);
    return found != config_.end() && !found->is_null();
  }

  const Json& config_;
  const std::string& origin_;
  ConfigErrors& errors_;
};

void read_model(ConfigReader& read, Json& model) {
  model["vocab_size"] = read.count("vocab_size");
  const std::int64_t layers = read.count("num_hidden_layers");
  model["num_layers"] = layers;
  model["d_model"] = read.count("hidden_size");
  const std::int64_t heads = read.count("num_attention_heads");
  model["num_heads"] = heads;
  if (const auto kv = read.count("num_key_value_heads", heads); kv != heads)
    read.fail("num_key_value_heads", concat("found ", kv, ", allowed: num_attention_heads (", heads,
                                            "), since OpenMoE does not share keys among heads"));
  model["head_dim"] = read.count("head_dim");
  model["ffn_dim"] = read.count("intermediate_size");
  const std::string activation = read.text("hidden_act", "swiglu");
  if (activation != "swiglu" && activation != "silu")
    read.fail("hidden_act", "found \"" + activation +
                                "\", allowed: \"swiglu\" (four matrices, as released) or \"silu\" "
                                "(three)");
  model["ffn"] = activation == "silu" ? "swiglu" : "gated_swiglu";
  model["attention_scale"] = "folded";
  model["tied_embedding"] = read.truth("tie_word_embeddings", false);
  model["norm_eps"] = read.number("rms_norm_eps", 1e-6);
  model["rope_base"] = read.number("rope_theta", 10000.0);
  model["num_experts"] = read.count("num_experts");
  const std::int64_t interval = read.count("moe_layer_interval");
  model["moe_interval"] = interval > layers ? 0 : interval;  // no layer is MoE: dense
  model["residual_ffn"] = "sequential";
}

void read_fixed(ConfigReader& read) {
  read.expect("rope_scaling", nullptr);
  read.expect("attention_bias", false);
  read.expect("mlp_gated", true);
  read.expect("router_topk", 2);
  read.expect("router_drop_tks", true);
  read.expect("router_noisy_policy", nullptr);
}

}  // namespace

std::string recipe_text_from_hf_config(const std::string& config_json, const std::string& origin) {
  ConfigErrors errors;
  const Json config = parse_json_document(config_json, origin, errors);
  if (!config.is_object())
    throw UserError(origin + ": found " + describe_json(config) + ", allowed: an object");
  ConfigReader read(config, origin, errors);
  Json recipe = Json::object();
  read_fixed(read);
  read_model(read, recipe["model"]);
  const std::int64_t length = read.count("max_position_embeddings", 2048);
  recipe["routing"] = {{"group_tokens", 2 * length},  // two rows, as in training
                       {"capacity_factor", read.number("router_capacity_factor_train", 1.25)},
                       {"eval_capacity_factor", read.number("router_capacity_factor_eval", 2.0)},
                       {"min_capacity", read.count("router_min_capacity", 4)}};
  recipe["loss"] = {{"load_balance_weight", read.number("router_aux_loss_factor", 0.01)},
                    {"router_z_weight", read.number("router_z_loss_factor", 1e-4)}};
  recipe["data"] = {
      {"sequence_length", length},
      {"phases",
       Json::array(
           {{{"objective", "causal_lm"}, {"packing", "packed"}, {"mixture", "openmoe-v2"}}})}};
  errors.throw_if_any("config.json");
  return recipe.dump(2);
}

std::string not_in_hf_config(const Recipe& recipe) {
  if (recipe.model.parallel_block)
    return "model.parallel_block is true, allowed: false, since the port computes attention first, "
           "and what follows from its result";
  if (recipe.model.num_moe_layers() == 0) return "";
  if (recipe.model.residual_ffn == ResidualFfn::parallel)
    return "model.residual_ffn is parallel, allowed: sequential, since the port computes the fixed "
           "FFN after the experts";
  if (recipe.routing.normalize_gates)
    return "routing.normalize_gates is true, allowed: false, since the port does not normalise "
           "gates";
  return "";
}

std::string hf_config_from_recipe(const Recipe& recipe, const std::string& base_json,
                                  const std::string& torch_dtype) {
  const ModelConfig& model = recipe.model;
  Json config = Json::parse(base_json.empty() ? kReleasedConfig : base_json);
  config["vocab_size"] = model.vocab_size;
  config["hidden_size"] = model.d_model;
  config["intermediate_size"] = model.ffn_dim;
  config["num_hidden_layers"] = model.num_layers;
  config["num_attention_heads"] = model.num_heads;
  config["num_key_value_heads"] = model.num_heads;
  config["head_dim"] = model.head_dim;
  config["hidden_act"] = model.ffn == FfnKind::gated_swiglu ? "swiglu" : "silu";
  config["mlp_gated"] = true;
  config["tie_word_embeddings"] = model.tied_embedding;
  config["rms_norm_eps"] = model.norm_eps;
  config["layer_norm_epsilon"] = model.norm_eps;
  config["rope_theta"] = model.rope_base;
  config["num_experts"] = model.num_experts;
  config["moe_layer_interval"] = model.moe_interval > 0 ? model.moe_interval : model.num_layers + 1;
  config["max_position_embeddings"] = recipe.data.sequence_length;
  config["router_topk"] = 2;
  config["router_capacity_factor_train"] = recipe.routing.capacity_factor;
  config["router_capacity_factor_eval"] = recipe.routing.eval_capacity_factor;
  config["router_min_capacity"] = recipe.routing.min_capacity;
  config["router_aux_loss_factor"] = recipe.loss.load_balance_weight;
  config["router_z_loss_factor"] = recipe.loss.router_z_weight;
  // Released files state values that were not those of training, and the import takes none of them.
  if (!config.contains("z_loss_factor")) config["z_loss_factor"] = recipe.loss.logits_z_weight;
  config["torch_dtype"] = torch_dtype;
  return config.dump(2) + "\n";
}

}  // namespace openmoe
