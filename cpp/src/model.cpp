#include "model.h"

#include <cpu.h>
#include <datareader.h>
#include <layer.h>
#include <net.h>
#include <platform.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "error.h"
#include "shapes.h"
#include "weights.h"
#if NCNN_VULKAN
#include <gpu.h>
#endif

namespace edgekit {

namespace {

struct OptionField {
    const char* name;
    bool ncnn::Option::*field;
};

constexpr OptionField kOptions[] = {
    {"use_int8_inference", &ncnn::Option::use_int8_inference},
    {"use_fp16_packed", &ncnn::Option::use_fp16_packed},
    {"use_fp16_storage", &ncnn::Option::use_fp16_storage},
    {"use_fp16_arithmetic", &ncnn::Option::use_fp16_arithmetic},
    {"use_bf16_packed", &ncnn::Option::use_bf16_packed},
    {"use_bf16_storage", &ncnn::Option::use_bf16_storage},
    {"use_int8_packed", &ncnn::Option::use_int8_packed},
    {"use_int8_storage", &ncnn::Option::use_int8_storage},
    {"use_int8_arithmetic", &ncnn::Option::use_int8_arithmetic},
    {"use_packing_layout", &ncnn::Option::use_packing_layout},
    {"use_winograd_convolution", &ncnn::Option::use_winograd_convolution},
    {"use_winograd23_convolution", &ncnn::Option::use_winograd23_convolution},
    {"use_winograd43_convolution", &ncnn::Option::use_winograd43_convolution},
    {"use_winograd63_convolution", &ncnn::Option::use_winograd63_convolution},
    {"use_sgemm_convolution", &ncnn::Option::use_sgemm_convolution},
    {"use_a53_a55_optimized_kernel", &ncnn::Option::use_a53_a55_optimized_kernel},
};

bool computes_fp16() {
    return ncnn::cpu_support_arm_asimdhp() || ncnn::cpu_support_arm_vfpv4() || ncnn::cpu_support_riscv_zfh() ||
           ncnn::cpu_support_riscv_zvfh();
}

void set_precision(ncnn::Option& option, const std::string& precision) {
    if (precision.empty()) return;
    if (precision == "fp16" && !option.use_vulkan_compute && !computes_fp16()) {
        throw not_possible("ncnn has no float16 on this CPU.", "Use --bf16, which works on every CPU.");
    }
    const bool half = precision == "fp16";
    option.use_fp16_packed = option.use_fp16_storage = option.use_fp16_arithmetic = half;
    option.use_bf16_packed = option.use_bf16_storage = !half;
}

void set_vulkan(ncnn::Option& option) {
    option.use_vulkan_compute = false;
#if NCNN_VULKAN
    if (ncnn::get_gpu_count() < 1) {
        throw not_possible("There is no Vulkan device (or no Vulkan loader) on this machine.",
                           "Leave --vulkan away to run on the CPU.");
    }
    option.use_vulkan_compute = true;
#else
    throw not_possible("Vulkan is not compiled into this edgekit-ncnn.",
                       "Build it against an ncnn with NCNN_VULKAN=ON, or leave --vulkan away.");
#endif
}

void configure(ncnn::Net& net, const CheckedModel& model, const RunSettings& settings, const std::string& where) {
    ncnn::Option& option = net.opt;
    option.num_threads = settings.threads;
    option.lightmode = settings.light_mode;
    option.use_vulkan_compute = false;
    for (const auto& [name, value] : model.sidecar.options) {
        bool known = false;
        for (const OptionField& field : kOptions) {
            if (name != field.name) continue;
            option.*field.field = value;
            known = true;
        }
        if (!known) {
            throw not_possible("This program has no ncnn option '" + name + "', which the model asks for.",
                               "Update edgekit-ncnn.");
        }
    }
    if (settings.vulkan) set_vulkan(option);
    set_precision(option, settings.precision);
    for (const ParamLayer& layer : model.graph.layers) {
        const bool quantizable = layer.type == "Convolution" || layer.type == "ConvolutionDepthWise" || layer.type == "InnerProduct";
        if (quantizable && layer.integer(8) != 0 && !option.use_int8_inference) {
            throw bad_input(where + ": its layers are INT8, but it switches use_int8_inference off, which gives NaN.",
                            "Export the model again.");
        }
    }
}

ncnn::Mat mat_of(const Tensor& tensor) {
    Shape inner = tensor.shape.size() > 1 ? Shape(tensor.shape.begin() + 1, tensor.shape.end()) : tensor.shape;
    ncnn::Mat mat;
    const auto at = [&](size_t i) { return int(inner[i]); };
    if (inner.size() == 1) mat.create(at(0));
    else if (inner.size() == 2) mat.create(at(1), at(0));
    else if (inner.size() == 3) mat.create(at(2), at(1), at(0));
    else mat.create(at(3), at(2), at(1), at(0));
    if (mat.empty()) throw Error(Exit::run_failed, "There is no memory for the input.");
    // channels are padded to whole cache lines
    const size_t plane = size_t(mat.w) * size_t(mat.h) * size_t(mat.d);
    for (int c = 0; c < mat.c; c++) {
        std::memcpy(static_cast<float*>(mat.channel(c)), tensor.values.data() + size_t(c) * plane, plane * 4);
    }
    return mat;
}

Tensor tensor_of(const ncnn::Mat& mat, const SidecarTensor& wanted) {
    Tensor out;
    out.shape = wanted.shape;
    const size_t plane = size_t(mat.w) * size_t(mat.h) * size_t(mat.d);
    const bool floats = mat.elempack == 1 && mat.elemsize == 4;
    if (!floats || int64_t(plane) * mat.c != count_of(wanted.shape)) {
        throw Error(Exit::run_failed,
                    "The model's output '" + wanted.name + "' comes as " + std::to_string(mat.c) + "x" +
                        std::to_string(mat.d) + "x" + std::to_string(mat.h) + "x" + std::to_string(mat.w) +
                        ", not as " + text_of(wanted.shape) + ".",
                    "The files belong to different models: export again.");
    }
    out.values.resize(plane * size_t(mat.c));
    for (int c = 0; c < mat.c; c++) {
        const ncnn::Mat channel = mat.channel(c);
        std::memcpy(out.values.data() + size_t(c) * plane, static_cast<const float*>(channel), plane * 4);
    }
    return out;
}

}  // namespace

CheckedModel check_model(const ModelFiles& files) {
    CheckedModel model;
    model.sidecar = parse_sidecar(files.sidecar, files.where);
    const std::string param = files.where + " (.param)", bin = files.where + " (.bin)";
    model.graph = parse_param(files.param, param);
    for (const ParamLayer& layer : model.graph.layers) {
        if (ncnn::layer_to_index(layer.type.c_str()) < 0) {
            const auto version = model.sidecar.versions.find("ncnn");
            throw bad_input(param + ": this ncnn has no layer '" + layer.type + "'.",
                            "The model was made for ncnn " +
                                (version == model.sidecar.versions.end() ? "?" : version->second) + ".");
        }
    }
    check_shapes(model.graph, model.sidecar, files.where);
    check_weights(files.bin, model.graph, bin);
    return model;
}

struct Model::State {
    CheckedModel model;
    // ncnn refers to the weights where they lie: they must outlive the net
    std::string bin;
    ncnn::Net net;
};

Model::Model(ModelFiles files, const RunSettings& settings) : state_(std::make_unique<State>()) {
    state_->model = check_model(files);
    if (settings.powersave >= 0 && ncnn::set_cpu_powersave(settings.powersave) != 0) {
        throw not_possible("The cores cannot be chosen by --powersave on this machine.");
    }
    configure(state_->net, state_->model, settings, files.where);
    state_->bin = std::move(files.bin);
    const unsigned char* param = reinterpret_cast<const unsigned char*>(files.param.data());
    int code = state_->net.load_param(ncnn::DataReaderFromMemory(param, files.param.size()));
    if (code != 0) throw bad_input("ncnn refuses " + files.where + " (.param, code " + std::to_string(code) + ").");
    const unsigned char* bin = reinterpret_cast<const unsigned char*>(state_->bin.data());
    code = state_->net.load_model(ncnn::DataReaderFromMemory(bin, state_->bin.size()));
    if (code != 0) throw bad_input("ncnn refuses " + files.where + " (.bin, code " + std::to_string(code) + ").");
    if (settings.vulkan && !state_->net.opt.use_vulkan_compute) {
        throw not_possible("ncnn cannot use the Vulkan device.", "Leave --vulkan away to run on the CPU.");
    }
}

Model::~Model() = default;

const Sidecar& Model::sidecar() const {
    return state_->model.sidecar;
}

std::vector<Tensor> Model::run(const Tensor& input) const {
    const Sidecar& sidecar = state_->model.sidecar;
    if (sidecar.inputs.size() != 1) {
        throw not_possible("The model has " + std::to_string(sidecar.inputs.size()) + " inputs; one is run here.");
    }
    const SidecarTensor& wanted = sidecar.inputs[0];
    if (input.shape != wanted.shape) {
        throw bad_input("An input of " + text_of(input.shape) + " where the model takes " + text_of(wanted.shape) +
                            ": ncnn models are made for one size.",
                        "Export the model for the size that is wanted.");
    }
    ncnn::Extractor extractor = state_->net.create_extractor();
    int code = extractor.input(wanted.blob.c_str(), mat_of(input));
    if (code != 0) {
        throw Error(Exit::run_failed, "ncnn does not take the input '" + wanted.blob + "' (code " + std::to_string(code) + ").");
    }
    std::vector<Tensor> outputs;
    for (const SidecarTensor& output : sidecar.outputs) {
        ncnn::Mat mat;
        code = extractor.extract(output.blob.c_str(), mat);
        if (code != 0 || mat.empty()) {
            throw Error(Exit::run_failed,
                        "ncnn does not compute the output '" + output.name + "' (code " + std::to_string(code) + ").",
                        "Out of memory, or a layer that does not take this shape.");
        }
        outputs.push_back(tensor_of(mat, output));
    }
    return outputs;
}

std::string ncnn_version() {
    return NCNN_VERSION_STRING;
}

bool vulkan_compiled_in() {
    return NCNN_VULKAN != 0;
}

CoreCounts core_counts() {
    return {ncnn::get_cpu_count(), ncnn::get_big_cpu_count(), ncnn::get_little_cpu_count()};
}

}  // namespace edgekit
