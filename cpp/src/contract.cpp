#include "contract.h"

#include <cmath>
#include <initializer_list>

#include "error.h"

namespace edgekit {

namespace {

constexpr int kMaxSide = 1 << 16;
constexpr int64_t kMaxElements = int64_t(1) << 28;

class Reader {
public:
    Reader(const Json& value, const std::string& where) : value_(value), where_(where) {}

    Error fail(const std::string& problem) const {
        return bad_input(where_ + ": " + problem + ".", "Copy the bundle again, or export it again.");
    }

    void choice(const char* key, std::string& out, std::initializer_list<const char*> known) const {
        const Json* item = value_.find(key);
        if (!item) return;
        if (item->is_text()) {
            for (const char* word : known) {
                if (item->text() == word) {
                    out = word;
                    return;
                }
            }
        }
        throw fail(std::string("'") + key + "' has an unknown value");
    }

    void number(const char* key, double& out) const {
        const Json* item = value_.find(key);
        if (!item) return;
        if (!item->is_number()) throw fail(std::string("'") + key + "' must be a number");
        out = item->number();
    }

    void whole(const char* key, int& out, int low, int high) const {
        const Json* item = value_.find(key);
        if (!item) return;
        const double number = item->is_number() ? item->number() : NAN;
        if (!(number >= low && number <= high) || number != std::floor(number)) {
            throw fail(std::string("'") + key + "' must be a whole number from " +
                       std::to_string(low) + " to " + std::to_string(high));
        }
        out = int(number);
    }

    void flag(const char* key, bool& out) const {
        const Json* item = value_.find(key);
        if (!item) return;
        if (!item->is_boolean()) throw fail(std::string("'") + key + "' must be true or false");
        out = item->boolean();
    }

    void per_channel(const char* key, std::vector<double>& out, size_t channels) const {
        if (const Json* item = value_.find(key)) {
            if (!item->is_array()) throw fail(std::string("'") + key + "' must be a list of numbers");
            out.clear();
            for (const Json& number : item->items()) {
                if (!number.is_number()) throw fail(std::string("'") + key + "' holds no number");
                out.push_back(number.number());
            }
        }
        // three equal values serve grey as one
        if (channels == 1 && out.size() == 3 && out[0] == out[1] && out[1] == out[2]) out.resize(1);
        if (out.size() != channels) {
            throw fail(std::string("'") + key + "' must hold " + std::to_string(channels) + " numbers");
        }
    }

    void known_keys(std::initializer_list<const char*> known) const {
        for (const Json::Member& member : value_.members()) {
            bool found = false;
            for (const char* word : known) found = found || member.first == word;
            if (!found) throw fail("unknown key " + quoted(member.first));
        }
    }

private:
    const Json& value_;
    const std::string& where_;
};

}  // namespace

Shape Contract::input_shape() const {
    if (layout == "nchw") return {1, channels(), height, width};
    return {1, height, width, channels()};
}

Contract Contract::from_json(const Json& value, const std::string& where) {
    const Reader reader(value, where);
    if (!value.is_object()) throw reader.fail("expected an object with height and width");
    reader.known_keys({"height", "width", "color", "resize", "pad_value", "pad_place", "upscale",
                       "crop_fraction", "interpolation", "scale", "mean", "std", "layout", "dtype"});
    Contract contract;
    for (const char* key : {"height", "width"}) {
        if (!value.find(key)) throw reader.fail(std::string("'") + key + "' is missing");
    }
    reader.whole("height", contract.height, 1, kMaxSide);
    reader.whole("width", contract.width, 1, kMaxSide);
    reader.choice("color", contract.color, {"rgb", "bgr", "gray"});
    reader.choice("resize", contract.resize, {"letterbox", "stretch", "center_crop", "none"});
    reader.whole("pad_value", contract.pad_value, 0, 255);
    reader.choice("pad_place", contract.pad_place, {"center", "bottom_right"});
    reader.flag("upscale", contract.upscale);
    reader.number("crop_fraction", contract.crop_fraction);
    reader.choice("interpolation", contract.interpolation, {"bilinear", "nearest", "area", "bicubic"});
    reader.number("scale", contract.scale);
    const size_t channels = size_t(contract.channels());
    reader.per_channel("mean", contract.mean, channels);
    reader.per_channel("std", contract.std, channels);
    reader.choice("layout", contract.layout, {"nchw", "nhwc"});
    reader.choice("dtype", contract.dtype, {"float32", "float16", "uint8"});
    for (const double number : contract.std) {
        if (number == 0) throw reader.fail("'std' must not contain 0");
    }
    if (!(contract.crop_fraction > 0.0 && contract.crop_fraction <= 1.0)) {
        throw reader.fail("'crop_fraction' must be above 0 and at most 1");
    }
    if (count_of(contract.input_shape()) > kMaxElements) throw reader.fail("the input is too large");
    return contract;
}

bool operator==(const Contract& a, const Contract& b) {
    return a.height == b.height && a.width == b.width && a.color == b.color && a.resize == b.resize &&
           a.pad_value == b.pad_value && a.pad_place == b.pad_place && a.upscale == b.upscale &&
           a.crop_fraction == b.crop_fraction && a.interpolation == b.interpolation &&
           a.scale == b.scale && a.mean == b.mean && a.std == b.std && a.layout == b.layout &&
           a.dtype == b.dtype;
}

}  // namespace edgekit
