#include "data/weight_file.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/base/check.h"
#include "core/base/dtype.h"
#include "core/base/error.h"
#include "data/input_file.h"
#include "data/safetensors.h"
#include "data/torch_file.h"

namespace openmoe {
namespace {

float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// IEEE binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
  // With the exponent field moved as it is, the value is 2^-112 of the true one; the product is
  // exact, subnormals included.
  constexpr float kRebias = 0x1p112f;
  const std::uint32_t finite = bits_of(float_of(magnitude) * kRebias);
  const std::uint32_t special = magnitude | 0x7f800000u;
  return float_of(sign | ((half & 0x7c00u) == 0x7c00u ? special : finite));
}

std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude >
      0x7f800000u) {  // NaN: keep the upper fraction bits, but not so few that it becomes infinite
    const std::uint32_t fraction = (magnitude >> 13) & 0x3ffu;
    half = 0x7c00u | (fraction != 0 ? fraction : 0x200u);
  } else if (magnitude >= 0x47800000u) {  // 65536 and more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; adding 1/2 leaves multiples of
                                         // 2^-24 in the fraction
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {  // exponent bias 127 -> 15, then round on bit 13
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

bool is_finite(float value) {
  return (bits_of(value) & 0x7f800000u) != 0x7f800000u;
}

}  // namespace

const char* name_of(WeightType type) {
  switch (type) {
    case WeightType::f32:
      return "f32";
    case WeightType::f16:
      return "f16";
    case WeightType::bf16:
      return "bf16";
    case WeightType::other:
      return "other";
  }
  return "?";
}

std::int64_t size_of(WeightType type) {
  OPENMOE_CHECK(type != WeightType::other, "no parameter type");
  return type == WeightType::f32 ? 4 : 2;
}

void decode_weights(WeightType type, const void* src, float* dst, std::int64_t count) {
  OPENMOE_CHECK(type != WeightType::other, "no parameter type");
  const auto* halves = static_cast<const std::uint16_t*>(src);
  switch (type) {
    case WeightType::f32:
      std::memcpy(dst, src, static_cast<std::size_t>(count) * sizeof(float));
      break;
    case WeightType::f16:
      for (std::int64_t i = 0; i < count; ++i) dst[i] = half_to_float(halves[i]);
      break;
    default:
      for (std::int64_t i = 0; i < count; ++i)
        dst[i] = float_of(static_cast<std::uint32_t>(halves[i]) << 16);
  }
}

std::int64_t encode_weights(WeightType type, const float* src, void* dst, std::int64_t count) {
  OPENMOE_CHECK(type != WeightType::other, "no parameter type");
  auto* halves = static_cast<std::uint16_t*>(dst);
  std::int64_t overflows = 0;
  switch (type) {
    case WeightType::f32:
      std::memcpy(dst, src, static_cast<std::size_t>(count) * sizeof(float));
      break;
    case WeightType::f16:
      for (std::int64_t i = 0; i < count; ++i) {
        halves[i] = float_to_half(src[i]);
        overflows += (halves[i] & 0x7fffu) == 0x7c00u && is_finite(src[i]);
      }
      break;
    default:
      for (std::int64_t i = 0; i < count; ++i) {
        halves[i] = BFloat16(src[i]).bits;
        overflows += (halves[i] & 0x7fffu) == 0x7f80u && is_finite(src[i]);
      }
  }
  return overflows;
}

std::int64_t WeightInfo::num_elements() const {
  std::int64_t count = 0;
  OPENMOE_CHECK(count_elements(shape, count), name, " ", shape_to_string(shape));
  return count;
}

std::int64_t WeightInfo::num_rows() const {
  std::int64_t rows = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
  return rows;
}

bool count_elements(const std::vector<std::int64_t>& shape, std::int64_t& count) {
  count = 1;
  // An empty tensor of absurd sizes is refused too: every partial product must fit.
  for (const std::int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(count, std::max<std::int64_t>(size, 1), &count))
      return false;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) count = 0;
  return true;
}

std::string shape_to_string(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + ")";
}

std::string in_quotes(const std::string& name) {
  constexpr std::size_t kLongest = 200;
  std::string text = "\"";
  for (const char c : name.substr(0, kLongest)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned char>(c));
      text += escaped;
    } else {
      text += c;
    }
  }
  return text + (name.size() > kLongest ? "...\"" : "\"");
}

std::unique_ptr<WeightFile> open_weight_file(const std::string& path) {
  InputFile file(path);
  char magic[2] = {};
  if (file.size_bytes() >= 2) file.read_at(0, magic, 2);
  // The eight bytes of a safetensors header length would need a header of more than 16 KiB to begin
  // so; its '{' settles it.
  char brace = 0;
  if (file.size_bytes() > 8) file.read_at(8, &brace, 1);
  if (magic[0] == 'P' && magic[1] == 'K' && brace != '{') return std::make_unique<TorchFile>(path);
  if (magic[0] == '\x80' && brace != '{')
    throw UserError(
        path +
        ": begins as a bare pickle, the format of PyTorch before 1.6; load it there and "
        "save it again with a newer torch.save, or as safetensors");
  return std::make_unique<SafetensorsFile>(std::move(file));
}

}  // namespace openmoe
