// How many cells the maps of a detector have.
#pragma once

#include <cstdint>
#include <vector>

#include "heads.h"

namespace edgekit {

// Sets of strides that published detectors have; the first is by far the commonest.
inline const std::vector<std::vector<int>>& stride_sets() {
    static const std::vector<std::vector<int>> sets = {{8, 16, 32},       {8, 16},            {8, 16, 32, 64},
                                                       {16, 32},          {4, 8, 16, 32},     {16, 32, 64}};
    return sets;
}

inline int64_t cells_of(int size, int stride) {
    return (int64_t(size) + stride - 1) / stride;
}

// Number of cells of all maps of an input of `size`.
inline int64_t cells(InputSize size, const std::vector<int>& strides) {
    int64_t out = 0;
    for (const int stride : strides) out += cells_of(size.height, stride) * cells_of(size.width, stride);
    return out;
}

}  // namespace edgekit
