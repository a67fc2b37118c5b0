// Resizing of 8-bit images, bit for bit as OpenCV's cv2.resize computes it.
#pragma once

#include "pixels.h"

namespace edgekit {

// Bilinear (cv2.INTER_LINEAR): weights of 11 bits, sums in fixed point. Equal to OpenCV's result for
// every size.
Pixels resize_bilinear(const Pixels& image, int height, int width);

// Nearest neighbour (cv2.INTER_NEAREST).
Pixels resize_nearest(const Pixels& image, int height, int width);

}  // namespace edgekit
