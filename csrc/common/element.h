// The dtypes of a kernel's inputs, as host and device name them.
#pragma once

#include <c10/core/ScalarType.h>

namespace vlkd {

enum class Element { kHalf, kBFloat16, kFloat, kDouble, kByte };

inline Element element_of(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Half: return Element::kHalf;
    case c10::ScalarType::BFloat16: return Element::kBFloat16;
    case c10::ScalarType::Float: return Element::kFloat;
    case c10::ScalarType::Byte: return Element::kByte;
    default: return Element::kDouble;
  }
}

} // namespace vlkd
