#include "layer_shapes.h"

#include <algorithm>
#include <cmath>

namespace edgekit {

namespace {

constexpr int64_t kMaxElements = int64_t(1) << 27;
constexpr int64_t kAbsent = -233;

int64_t positive_axis(const ParamLayer& layer, int64_t axis, size_t rank) {
    const int64_t positive = axis < 0 ? axis + int64_t(rank) : axis;
    if (positive < 0 || positive >= int64_t(rank)) {
        throw misfit(layer, "works on axis " + std::to_string(axis) + " of " + std::to_string(rank));
    }
    return positive;
}

}  // namespace

Error misfit(const ParamLayer& layer, const std::string& problem) {
    return bad_input("The ncnn layer '" + layer.name + "' (" + layer.type + ") " + problem + ".",
                     "The .param is damaged, or belongs to another model: export it again.");
}

void check_size(const ParamLayer& layer, const Shape& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) {
        if (size < 1 || size > kMaxElements || count * size > kMaxElements) {
            throw misfit(layer, "makes a blob of " + text_of(shape));
        }
        count *= size;
    }
}

void check_rank(const ParamLayer& layer, const Shape& in, size_t rank) {
    if (in.size() != rank) {
        throw misfit(layer, "does not take " + text_of(in) + ", but " + std::to_string(rank) + " axes");
    }
}

int64_t side(const ParamLayer& layer, int key, int64_t otherwise, int64_t low, int64_t high) {
    const int64_t value = layer.integer(key, otherwise);
    if (value < low || value > high) {
        throw misfit(layer, "has the unusable value " + std::to_string(key) + "=" + std::to_string(value));
    }
    return value;
}

void check_activation(const ParamLayer& layer, int type_key, int params_key) {
    const int64_t type = layer.integer(type_key);
    const size_t count = layer.numbers(params_key).size();
    if (type < 0 || type > 6 || (type == 2 && count < 1) || ((type == 3 || type == 6) && count < 2)) {
        throw misfit(layer, "has an unusable activation");
    }
}

void check_weight(const ParamLayer& layer, int64_t found, int64_t wanted) {
    if (found != wanted) {
        throw misfit(layer, "has " + std::to_string(found) + " weights where its input needs " +
                                std::to_string(wanted));
    }
}

Shape shape_of_inner_product(const ParamLayer& layer, const Shape& in) {
    const int64_t outputs = side(layer, 0, 0, 1), weights = layer.integer(2);
    check_activation(layer, 9, 10);
    if (in.size() == 2 && weights == outputs * in[1]) return {in[0], outputs};
    check_weight(layer, weights, outputs * count_of(in));
    return {outputs};
}

Shape shape_of_reshape(const ParamLayer& layer, const Shape& in) {
    if (layer.has(6) || layer.has(12) || layer.has(13)) return {};  // an expression, or a batch
    const int64_t w = layer.integer(0, kAbsent), h = layer.integer(1, kAbsent);
    const int64_t d = layer.integer(11, kAbsent), c = layer.integer(2, kAbsent);
    Shape out;
    if (w == kAbsent) return {};
    if (h == kAbsent) out = {w};
    else if (c == kAbsent) out = {h, w};
    else if (d == kAbsent) out = {c, h, w};
    else out = {c, d, h, w};
    const int64_t total = count_of(in);
    int64_t known = 1;
    size_t free = out.size();
    for (size_t i = 0; i < out.size(); i++) {
        if (out[i] == 0) {
            // the size of the same axis of the input, counted from the innermost; the outermost is c
            if (in.size() != out.size()) return {};
            out[i] = in[i];
        }
        if (out[i] == -1) {
            if (free != out.size()) throw misfit(layer, "leaves two sizes open");
            free = i;
            continue;
        }
        if (out[i] < 1 || out[i] > kMaxElements) throw misfit(layer, "has an unusable size");
        known *= out[i];
        if (known > kMaxElements) throw misfit(layer, "has an unusable size");
    }
    if (free != out.size()) {
        out[free] = total / known;
        known *= out[free];
    }
    if (known != total) throw misfit(layer, "makes " + text_of(out) + " of " + text_of(in));
    return out;
}

Shape shape_of_flatten(const ParamLayer&, const Shape& in) {
    return {count_of(in)};
}

Shape shape_of_permute(const ParamLayer& layer, const Shape& in) {
    const int64_t order = layer.integer(0);
    if (in.size() == 1) return in;
    if (in.size() == 2) {
        if (order < 0 || order > 1) throw misfit(layer, "has an unknown order");
        return order == 0 ? in : Shape{in[1], in[0]};
    }
    if (in.size() == 3) {
        const int64_t c = in[0], h = in[1], w = in[2];
        const Shape orders[] = {{c, h, w}, {c, w, h}, {h, c, w}, {h, w, c}, {w, c, h}, {w, h, c}};
        if (order < 0 || order > 5) throw misfit(layer, "has an unknown order");
        return orders[order];
    }
    if (order < 0 || order > 23) throw misfit(layer, "has an unknown order");
    return order == 0 ? in : Shape{};
}

Shape shape_of_interp(const ParamLayer& layer, const Shape& in) {
    side(layer, 0, 0, 1, 3);
    if (layer.has(9) || layer.integer(5) != 0) return {};  // a size that is computed, or an input
    const int64_t out_h = layer.integer(3), out_w = layer.integer(4);
    if (out_h < 0 || out_w < 0 || out_h > (1 << 20) || out_w > (1 << 20)) throw misfit(layer, "has an unusable size");
    const double scale_h = layer.number(1, 1.0), scale_w = layer.number(2, 1.0);
    if (!(scale_h > 0 && scale_h < 1024 && scale_w > 0 && scale_w < 1024)) {
        throw misfit(layer, "has an unusable scale");
    }
    if (in.size() != 3) return {};
    if (out_h != 0 && out_w != 0) return {in[0], out_h, out_w};
    // single precision, as there
    return {in[0], int64_t(float(in[1]) * float(scale_h)), int64_t(float(in[2]) * float(scale_w))};
}

Shape shape_of_softmax(const ParamLayer& layer, const Shape& in) {
    positive_axis(layer, layer.integer(0), in.size());
    return in;
}

Shape shape_of_padding(const ParamLayer& layer, const Shape& in) {
    const int64_t top = layer.integer(0), bottom = layer.integer(1), left = layer.integer(2), right = layer.integer(3);
    const int64_t type = side(layer, 4, 0, 0, 2), front = layer.integer(7), behind = layer.integer(8, front);
    const int64_t pads[] = {top, bottom, left, right, front, behind};
    for (const int64_t pad : pads) {
        if (pad < 0 || pad > 65536) throw misfit(layer, "has an unusable padding");
    }
    if (in.size() != 3) return {};
    const int64_t per_channel = layer.integer(6);
    if (per_channel != 0 && per_channel != in[0] + front + behind) throw misfit(layer, "has another number of values");
    const Shape out = {in[0] + front + behind, in[1] + top + bottom, in[2] + left + right};
    const bool reflects = type == 2;
    if (reflects && (top >= in[1] || bottom >= in[1] || left >= in[2] || right >= in[2] || front >= in[0] || behind >= in[0])) {
        throw misfit(layer, "mirrors more than there is");
    }
    return out;
}

Shape shape_of_pixel_shuffle(const ParamLayer& layer, const Shape& in) {
    check_rank(layer, in, 3);
    const int64_t factor = side(layer, 0, 1, 1, 256);
    if (in[0] % (factor * factor) != 0) throw misfit(layer, "does not fit " + text_of(in));
    return {in[0] / (factor * factor), in[1] * factor, in[2] * factor};
}

Shape shape_of_shuffle_channel(const ParamLayer& layer, const Shape& in) {
    check_rank(layer, in, 3);
    if (in[0] % side(layer, 0, 1, 1) != 0) throw misfit(layer, "does not fit " + text_of(in));
    return in;
}

Shape shape_of_per_channel(const ParamLayer& layer, const Shape& in) {
    const bool group = layer.type == "GroupNorm";
    const int64_t channels = layer.integer(group ? 1 : 0);
    const bool single = layer.type == "PReLU" && channels == 1;
    const bool affine = layer.type != "InstanceNorm" || layer.integer(2, 1) != 0;
    if (channels != in[0] && !single && affine) {
        throw misfit(layer, "has " + std::to_string(channels) + " channels, its input " + std::to_string(in[0]));
    }
    if (group && channels % side(layer, 0, 1, 1) != 0) throw misfit(layer, "splits its channels unevenly");
    return in;
}

void check_norm_size(const ParamLayer& layer, const Shape& in) {
    const int64_t size = layer.integer(0);
    int64_t inner = 1;
    for (size_t i = in.size(); i-- > 0;) {
        inner *= in[i];
        if (inner == size) return;
    }
    throw misfit(layer, "works on " + std::to_string(size) + " values of " + text_of(in));
}

Shape shape_of_memory(const ParamLayer& layer) {
    const int64_t w = layer.integer(0), h = layer.integer(1), c = layer.integer(2), d = layer.integer(11);
    if (d != 0) return {c, d, h, w};
    if (c != 0) return {c, h, w};
    if (h != 0) return {h, w};
    return {w};
}

Shape shape_of_concat(const ParamLayer& layer, const std::vector<std::optional<Shape>>& in) {
    Shape out = *in[0];
    const size_t axis = size_t(positive_axis(layer, layer.integer(0), out.size()));
    for (size_t i = 1; i < in.size(); i++) {
        Shape other = *in[i];
        if (other.size() != out.size()) throw misfit(layer, "joins blobs of different ranks");
        const int64_t joined = out[axis] + other[axis];
        other[axis] = out[axis];
        if (other != out) throw misfit(layer, "joins " + text_of(out) + " and " + text_of(*in[i]));
        out[axis] = joined;
    }
    return out;
}

std::vector<Shape> shapes_of_slice(const ParamLayer& layer, const Shape& in) {
    const size_t axis = size_t(positive_axis(layer, layer.integer(1), in.size()));
    const std::vector<int64_t> sizes = layer.integers(0), ends = layer.integers(2);
    const size_t count = layer.outputs.size();
    if (ends.empty() ? sizes.size() < count : ends.size() + 1 < count) {
        throw misfit(layer, "names too few slices");
    }
    std::vector<Shape> out;
    int64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t size;
        if (!ends.empty()) {
            const int64_t end = i + 1 == count ? in[axis] : ends[i] < 0 ? in[axis] + ends[i] : ends[i];
            size = end - at;
        } else {
            size = sizes[i] == kAbsent ? (in[axis] - at) / int64_t(count - i) : sizes[i];
        }
        if (size < 1 || size > in[axis] - at) throw misfit(layer, "cuts more than there is from " + text_of(in));
        Shape shape = in;
        shape[axis] = size;
        out.push_back(shape);
        at += size;
    }
    return out;
}

Shape shape_of_binary(const ParamLayer& layer, const Shape& a, const Shape& b) {
    const size_t rank = std::max(a.size(), b.size());
    auto widened = [&](const Shape& shape, const Shape& other) {
        if (shape.size() == rank) return shape;
        if (shape.size() == 1) {
            Shape out(rank, 1);
            (shape[0] == other[0] ? out.front() : out.back()) = shape[0];
            return out;
        }
        Shape out = shape;
        out.resize(rank, 1);  // inner axes of 1
        return out;
    };
    const Shape one = widened(a, b), two = widened(b, a);
    Shape out;
    for (size_t i = 0; i < rank; i++) {
        if (one[i] != two[i] && one[i] != 1 && two[i] != 1) {
            throw misfit(layer, "joins " + text_of(a) + " and " + text_of(b));
        }
        out.push_back(std::max(one[i], two[i]));
    }
    return out;
}

Shape shape_of_matmul(const ParamLayer& layer, const Shape& a, const Shape& b) {
    if (a.size() < 2 || b.size() < 2) return {};
    const bool turned = layer.integer(0) != 0;
    const int64_t inner = a.back(), rows = a[a.size() - 2];
    const int64_t other = turned ? b.back() : b[b.size() - 2];
    const int64_t columns = turned ? b[b.size() - 2] : b.back();
    if (inner != other) throw misfit(layer, "multiplies " + text_of(a) + " by " + text_of(b));
    const size_t rank = std::max(a.size(), b.size());
    Shape out;
    for (size_t i = 0; i + 2 < rank; i++) {
        const size_t skip_a = rank - a.size(), skip_b = rank - b.size();
        const int64_t x = i < skip_a ? 1 : a[i - skip_a], y = i < skip_b ? 1 : b[i - skip_b];
        if (x != y && x != 1 && y != 1) throw misfit(layer, "multiplies " + text_of(a) + " by " + text_of(b));
        out.push_back(std::max(x, y));
    }
    out.push_back(rows);
    out.push_back(columns);
    return out;
}

}  // namespace edgekit
