#include "weights.h"

#include <cmath>
#include <cstring>

#include "error.h"

namespace edgekit {

namespace {

constexpr uint32_t kFp32 = 0x00000000, kFp16 = 0x01306B47, kBf16 = 0x01348B83, kInt8 = 0x000D4B38;
constexpr uint32_t kFp32Marked = 0x0002C056;
constexpr int64_t kMaxElements = int64_t(1) << 31;

// A product that stays at a value nothing fits when it is too large, or a factor is negative.
int64_t product(std::initializer_list<int64_t> factors) {
    int64_t out = 1;
    for (const int64_t factor : factors) {
        if (factor < 0) return -1;
        if (factor != 0 && out > kMaxElements / factor) return kMaxElements + 1;
        out *= factor;
    }
    return out;
}

bool starts_with(const std::string& text, const char* with) {
    return text.rfind(with, 0) == 0;
}

class Slots {
public:
    explicit Slots(const ParamLayer& layer) : layer_(layer) {}

    void tagged(const char* name, int64_t size) { list.push_back({name, size, true}); }
    void plain(const char* name, int64_t size) { list.push_back({name, size, false}); }
    // A plain array that is not there when its size is 0.
    void optional(const char* name, int key, int64_t otherwise = 0) {
        const int64_t size = layer_.integer(key, otherwise);
        if (size != 0) plain(name, size);
    }

    void convolution() {
        const bool transposed = layer_.type.find("Deconvolution") != std::string::npos;
        if (layer_.integer(transposed ? 28 : 19) != 0) return;  // its weight is an input
        const int64_t outputs = layer_.integer(0), term = layer_.integer(8);
        tagged("weight", layer_.integer(6));
        if (layer_.integer(5) != 0) plain("bias", outputs);
        if (term != 0 && layer_.type == "Convolution") {
            plain("weight_scales", outputs);
            plain("input_scale", 1);
        } else if (term != 0 && layer_.type == "ConvolutionDepthWise") {
            plain("weight_scales", term == 1 || term == 101 ? layer_.integer(7, 1) : 1);
            plain("input_scale", 1);
        }
        if (term > 100) plain("output_scale", 1);
    }

    void inner_product() {
        tagged("weight", layer_.integer(2));
        if (layer_.integer(1) != 0) plain("bias", layer_.integer(0));
        if (layer_.integer(8) != 0) {
            plain("weight_scales", layer_.integer(0));
            plain("input_scale", 1);
        }
    }

    void gemm() {
        const int64_t rows = layer_.integer(7), columns = layer_.integer(8), inner = layer_.integer(9);
        const int64_t term = layer_.integer(18);
        refuse_blocks(term);
        if (layer_.integer(4) == 1) tagged("a", product({rows, inner}));
        if (layer_.integer(5) == 1) tagged("b", product({columns, inner}));
        const int64_t shape = layer_.integer(10);
        if (layer_.integer(6) == 1 && shape != -1) {
            if (shape < 0 || shape > 4) throw bad_input("ncnn layer '" + layer_.name + "': 10 is no shape of C.");
            const int64_t sizes[] = {1, rows, rows, product({rows, columns}), columns};
            tagged("c", sizes[shape]);
        }
        if (term != 0 && layer_.integer(4) == 1) plain("a_scales", rows);
        if (term != 0 && layer_.integer(5) == 1) plain("b_scale", 1);
    }

    void attention() {
        const int64_t width = layer_.integer(0), size = layer_.integer(2);
        refuse_blocks(layer_.integer(18));
        if (width <= 0) throw bad_input("ncnn layer '" + layer_.name + "': an embedding of no width.");
        const int64_t query = size / width;
        tagged("q", product({width, query}));
        plain("q_bias", width);
        tagged("k", product({width, layer_.integer(3, width)}));
        plain("k_bias", width);
        tagged("v", product({width, layer_.integer(4, width)}));
        plain("v_bias", width);
        tagged("out", product({query, width}));
        plain("out_bias", query);
        if (layer_.integer(18) != 0) {
            plain("q_scales", width);
            plain("k_scales", width);
            plain("v_scales", width);
            plain("out_scale", 1);
        }
    }

    void recurrent() {
        const bool lstm = layer_.type == "LSTM";
        const int64_t gates = lstm ? 4 : layer_.type == "GRU" ? 3 : 1;
        const int64_t biases = layer_.type == "RNN" ? 1 : 4;
        const int64_t outputs = layer_.integer(0), size = layer_.integer(1);
        const int64_t hidden = lstm ? layer_.integer(3, outputs) : outputs;
        const int64_t directions = layer_.integer(2) == 2 ? 2 : 1;
        tagged("weight_xc", size);
        tagged("bias_c", product({hidden, biases, directions}));
        tagged("weight_hc", product({outputs, hidden, gates, directions}));
        if (hidden != outputs) tagged("weight_hr", product({hidden, outputs, directions}));
        if (layer_.integer(8) != 0) {
            plain("weight_xc_scales", product({hidden, gates, directions}));
            plain("weight_hc_scales", product({hidden, gates, directions}));
        }
    }

    void memory() {
        const int64_t w = layer_.integer(0), h = layer_.integer(1), c = layer_.integer(2), d = layer_.integer(11);
        int64_t size = w;
        if (h != 0 || c != 0 || d != 0) size = product({size, h});
        if (c != 0 || d != 0) size = product({size, c});
        if (d != 0) size = product({size, d});
        if (size == 0) return;
        list.push_back({"data", size, layer_.integer(21, 1) == 0});
    }

    void norm() {
        const bool group = layer_.type == "GroupNorm";
        if (layer_.integer(group ? 3 : 2, 1) == 0) return;
        plain("gamma", layer_.integer(group ? 1 : 0));
        if (layer_.type != "RMSNorm") plain("beta", layer_.integer(group ? 1 : 0));
    }

    void read() {
        const std::string& type = layer_.type;
        if (starts_with(type, "Convolution") || starts_with(type, "Deconvolution") ||
            type == "DeformableConv2D") {
            convolution();
        } else if (type == "InnerProduct") {
            inner_product();
        } else if (type == "Gemm") {
            gemm();
        } else if (type == "MultiHeadAttention") {
            attention();
        } else if (type == "LSTM" || type == "GRU" || type == "RNN") {
            recurrent();
        } else if (type == "MemoryData") {
            memory();
        } else if (type == "Embed") {
            tagged("weight", layer_.integer(3));
            if (layer_.integer(2) != 0) plain("bias", layer_.integer(0));
            if (layer_.integer(18) != 0) plain("weight_scale", 1);
        } else if (type == "GroupNorm" || type == "InstanceNorm" || type == "LayerNorm" || type == "RMSNorm") {
            norm();
        } else if (type == "Scale") {
            const int64_t size = layer_.integer(0);
            if (size == -233) return;  // the scale is an input
            plain("scale", size);
            if (layer_.integer(1) != 0) plain("bias", size);
        } else if (type == "BatchNorm") {
            for (const char* name : {"slope", "mean", "variance", "bias"}) optional(name, 0);
        } else if (type == "Bias") {
            optional("bias", 0);
        } else if (type == "PReLU") {
            optional("slope", 0);
        } else if (type == "Normalize") {
            optional("scale", 3);
        } else if (type == "Padding") {
            optional("values", 6);
        } else if (type == "Quantize") {
            optional("scale", 0, 1);
        } else if (type == "Dequantize") {
            optional("scale", 0, 1);
            optional("bias", 1);
        } else if (type == "Requantize") {
            optional("scale_in", 0, 1);
            optional("scale_out", 1, 1);
            optional("bias", 2);
        }
    }

    std::vector<Slot> list;

private:
    void refuse_blocks(int64_t term) const {
        if (term >= 400) throw not_possible("ncnn layer '" + layer_.name + "' has block-quantized weights.");
    }

    const ParamLayer& layer_;
};

}  // namespace

std::vector<Slot> slots_of(const ParamLayer& layer) {
    Slots slots(layer);
    slots.read();
    for (const Slot& slot : slots.list) {
        if (slot.size <= 0 || slot.size >= kMaxElements) {
            throw bad_input("ncnn layer '" + layer.name + "': a " + slot.name + " of " +
                            std::to_string(slot.size) + " values.");
        }
    }
    return slots.list;
}

void check_weights(std::string_view data, const ParamGraph& graph, const std::string& what) {
    auto refused = [&](const std::string& problem) {
        return bad_input(what + " does not fit its .param: " + problem + ".",
                         "The file is damaged, or belongs to another model: export it again.");
    };
    size_t at = 0;
    for (const ParamLayer& layer : graph.layers) {
        for (const Slot& slot : slots_of(layer)) {
            const std::string where = "the " + slot.name + " of layer '" + layer.name + "' (" + layer.type + ")";
            uint64_t width = 4;
            if (slot.tagged) {
                uint32_t tag = 0;
                if (data.size() - at < 4) throw refused("it ends within " + where);
                std::memcpy(&tag, data.data() + at, 4);
                at += 4;
                if (tag == kFp16 || tag == kBf16) width = 2;
                else if (tag == kInt8) width = 1;
                else if (tag != kFp32 && tag != kFp32Marked) throw refused(where + " begins with an unknown mark");
            }
            const uint64_t bytes = (uint64_t(slot.size) * width + 3) / 4 * 4;
            if (bytes > data.size() - at) throw refused("it ends within " + where);
            if (!slot.tagged) {
                for (uint64_t i = 0; i < bytes; i += 4) {
                    float value;
                    std::memcpy(&value, data.data() + at + i, 4);
                    if (!std::isfinite(value)) throw refused(where + " holds a value that is not finite");
                }
            }
            at += size_t(bytes);
        }
    }
    if (at != data.size()) {
        throw refused(std::to_string(data.size() - at) + " bytes are left over behind the last layer");
    }
}

}  // namespace edgekit
