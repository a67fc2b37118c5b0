// The preprocessing contract: how a decoded image becomes the model's input tensor.
//
// The same value object as edgekit/preprocess.py, which describes the arithmetic; every field has the
// same name and default there.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "json.h"
#include "tensor.h"

namespace edgekit {

struct Contract {
    int height = 0;
    int width = 0;
    std::string color = "rgb";
    std::string resize = "letterbox";
    int pad_value = 114;
    std::string pad_place = "center";
    bool upscale = true;
    double crop_fraction = 1.0;
    std::string interpolation = "bilinear";
    double scale = 1.0 / 255.0;
    std::vector<double> mean{0.0, 0.0, 0.0};
    std::vector<double> std{1.0, 1.0, 1.0};
    std::string layout = "nchw";
    std::string dtype = "float32";

    int channels() const { return color == "gray" ? 1 : 3; }
    // Shape of the tensor for one image, batch axis included.
    Shape input_shape() const;

    // Reads and checks a contract; `where` names it in messages. Throws Error (bad input).
    static Contract from_json(const Json& value, const std::string& where);
};

bool operator==(const Contract& a, const Contract& b);
inline bool operator!=(const Contract& a, const Contract& b) { return !(a == b); }

}  // namespace edgekit
