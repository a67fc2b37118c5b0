// A float32 array with its shape, in C order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgekit {

using Shape = std::vector<int64_t>;

struct Tensor {
    Shape shape;
    std::vector<float> values;
};

// Product of the sizes; the sizes must have been checked to be small enough.
inline int64_t count_of(const Shape& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    return count;
}

inline std::string text_of(const Shape& shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); i++) {
        if (i > 0) out += ", ";
        out += std::to_string(shape[i]);
    }
    return out + "]";
}

}  // namespace edgekit
