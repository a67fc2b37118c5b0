// The layers that slide a window over their input: convolution, its transpose, pooling.
#include "layer_shapes.h"

namespace edgekit {

namespace {

// what one layer may cost: far above any model that is run on a board, and short of a hang
constexpr int64_t kMaxProducts = int64_t(2) << 40;
constexpr int64_t kMaxComparisons = int64_t(1) << 34;
constexpr int64_t kAbsent = -233;
constexpr int64_t kSameUpper = -233, kSameLower = -234;

// Kernel, stride, dilation and padding of a sliding window; the keys are those of Convolution.
struct Window {
    int64_t kernel_w, kernel_h, dilation_w, dilation_h, stride_w, stride_h;
    int64_t left, right, top, bottom;

    int64_t extent_w() const { return dilation_w * (kernel_w - 1) + 1; }
    int64_t extent_h() const { return dilation_h * (kernel_h - 1) + 1; }
};

Window convolution_window(const ParamLayer& layer) {
    Window w{};
    w.kernel_w = side(layer, 1, 0, 1, 4096);
    w.kernel_h = side(layer, 11, w.kernel_w, 1, 4096);
    w.dilation_w = side(layer, 2, 1, 1, 4096);
    w.dilation_h = side(layer, 12, w.dilation_w, 1, 4096);
    w.stride_w = side(layer, 3, 1, 1, 4096);
    w.stride_h = side(layer, 13, w.stride_w, 1, 4096);
    w.left = side(layer, 4, 0, kSameLower, 65536);
    w.right = side(layer, 15, w.left, kSameLower, 65536);
    w.top = side(layer, 14, w.left, kSameLower, 65536);
    w.bottom = side(layer, 16, w.top, kSameLower, 65536);
    return w;
}

// Positions of a window along an axis that is padded to the same count as its strides.
int64_t same_positions(int64_t size, int64_t stride) {
    return (size - 1) / stride + 1;
}

int64_t groups_of(const ParamLayer& layer, int64_t channels, int64_t outputs) {
    if (layer.type.find("DepthWise") == std::string::npos) return 1;
    const int64_t groups = side(layer, 7, 1, 1);
    if (channels % groups != 0 || outputs % groups != 0) {
        throw misfit(layer, "splits " + std::to_string(channels) + " channels into " + std::to_string(groups));
    }
    return groups;
}

// Refuses a window that is slid too often over too much.
void check_cost(const ParamLayer& layer, const Shape& out, int64_t window, int64_t most) {
    check_size(layer, out);
    if (window > most / count_of(out)) throw misfit(layer, "makes " + text_of(out) + " of windows of " + std::to_string(window));
}

}  // namespace

Shape shape_of_convolution(const ParamLayer& layer, const Shape& in) {
    const int64_t outputs = side(layer, 0, 0, 1);
    check_activation(layer, 9, 10);
    const int64_t term = layer.integer(8);
    if (term != 0 && term != 1 && term != 2 && term != 101 && term != 102) {
        throw misfit(layer, "has the unusable value 8=" + std::to_string(term));
    }
    const Window w = convolution_window(layer);
    const int64_t weights = layer.integer(6);
    if (in.size() == 1 && layer.type == "Convolution" && w.kernel_w == 1 && w.kernel_h == 1) {
        check_weight(layer, weights, outputs * in[0]);  // computed as an inner product
        return {outputs};
    }
    check_rank(layer, in, 3);
    const int64_t groups = groups_of(layer, in[0], outputs);
    check_weight(layer, weights, outputs / groups * in[0] * w.kernel_w * w.kernel_h);
    const int64_t window = in[0] / groups * w.kernel_w * w.kernel_h;
    const int64_t most = groups > 1 ? kMaxComparisons : kMaxProducts;
    if (w.left == kSameUpper || w.left == kSameLower) {
        if (w.right != w.left || w.top != w.left || w.bottom != w.left) throw misfit(layer, "has an unusable padding");
        const Shape same = {outputs, same_positions(in[1], w.stride_h), same_positions(in[2], w.stride_w)};
        check_cost(layer, same, window, most);
        return same;
    }
    if (w.left < 0 || w.right < 0 || w.top < 0 || w.bottom < 0) throw misfit(layer, "has an unusable padding");
    const int64_t spare_h = in[1] + w.top + w.bottom - w.extent_h();
    const int64_t spare_w = in[2] + w.left + w.right - w.extent_w();
    if (spare_h < 0 || spare_w < 0) throw misfit(layer, "has a kernel larger than its input " + text_of(in));
    const Shape out = {outputs, spare_h / w.stride_h + 1, spare_w / w.stride_w + 1};
    check_cost(layer, out, window, most);
    return out;
}

Shape shape_of_deconvolution(const ParamLayer& layer, const Shape& in) {
    check_rank(layer, in, 3);
    const int64_t outputs = side(layer, 0, 0, 1);
    check_activation(layer, 9, 10);
    const Window w = convolution_window(layer);
    const int64_t groups = groups_of(layer, in[0], outputs);
    if (layer.integer(28) != 0) return {};
    check_weight(layer, layer.integer(6), outputs / groups * in[0] * w.kernel_w * w.kernel_h);
    const int64_t more_w = side(layer, 18, 0, 0, 4096), more_h = side(layer, 19, more_w, 0, 4096);
    if (layer.has(20) || layer.has(21) || w.left < 0 || w.top < 0 || w.right < 0 || w.bottom < 0) return {};
    const int64_t height = (in[1] - 1) * w.stride_h + w.extent_h() + more_h - w.top - w.bottom;
    const int64_t width = (in[2] - 1) * w.stride_w + w.extent_w() + more_w - w.left - w.right;
    if (height < 1 || width < 1) throw misfit(layer, "cuts everything off " + text_of(in));
    check_cost(layer, in, outputs / groups * w.kernel_w * w.kernel_h, kMaxProducts);
    return {outputs, height, width};
}

Shape shape_of_pooling(const ParamLayer& layer, const Shape& in) {
    check_rank(layer, in, 3);
    if (side(layer, 0, 0, 0, 1) < 0) return {};
    if (layer.integer(4) != 0) return {in[0]};
    if (layer.integer(7) != 0) {
        const int64_t width = layer.integer(8), height = layer.integer(18, width);
        if ((width < 1 && width != kAbsent) || (height < 1 && height != kAbsent)) {
            throw misfit(layer, "has an unusable output size");
        }
        return {in[0], height == kAbsent ? in[1] : height, width == kAbsent ? in[2] : width};
    }
    Window w{};
    w.kernel_w = side(layer, 1, 0, 1, 4096);
    w.kernel_h = side(layer, 11, w.kernel_w, 1, 4096);
    w.stride_w = side(layer, 2, 1, 1, 4096);
    w.stride_h = side(layer, 12, w.stride_w, 1, 4096);
    w.left = side(layer, 3, 0, 0, 4096);
    w.right = side(layer, 14, w.left, 0, 4096);
    w.top = side(layer, 13, w.left, 0, 4096);
    w.bottom = side(layer, 15, w.top, 0, 4096);
    const int64_t mode = side(layer, 5, 0, 0, 3);
    if (w.left >= w.kernel_w || w.right >= w.kernel_w || w.top >= w.kernel_h || w.bottom >= w.kernel_h) {
        throw misfit(layer, "pads by more than its window");
    }
    if (mode >= 2) {
        const Shape same = {in[0], same_positions(in[1], w.stride_h), same_positions(in[2], w.stride_w)};
        check_cost(layer, same, w.kernel_w * w.kernel_h, kMaxComparisons);
        return same;
    }
    const int64_t spare_h = in[1] + w.top + w.bottom - w.kernel_h;
    const int64_t spare_w = in[2] + w.left + w.right - w.kernel_w;
    if (spare_h < 0 || spare_w < 0) throw misfit(layer, "has a window larger than its input " + text_of(in));
    // "full" padding adds what the last window lacks
    const int64_t up_h = mode == 0 ? w.stride_h - 1 : 0, up_w = mode == 0 ? w.stride_w - 1 : 0;
    const Shape out = {in[0], (spare_h + up_h) / w.stride_h + 1, (spare_w + up_w) / w.stride_w + 1};
    check_cost(layer, out, w.kernel_w * w.kernel_h, kMaxComparisons);
    return out;
}

}  // namespace edgekit
