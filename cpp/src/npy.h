// numpy's .npy, version 1.0: little-endian, C order, as a bundle's golden files are.
// Source: numpy.lib.format's description of the format.
#pragma once

#include <string>
#include <string_view>

#include "tensor.h"

namespace edgekit {

// Whether the bytes begin as a .npy file does.
bool is_npy(std::string_view data);

// Reads float32 ('<f4'); float16, float64, (u)int8 and int32 become float32. `what` names the file in
// messages. Throws Error (bad input) for another version, order or type, and for a size that does not
// fit the bytes.
Tensor read_npy(std::string_view data, const std::string& what);

// The tensor as a .npy of float32.
std::string npy_bytes(const Tensor& tensor);

}  // namespace edgekit
