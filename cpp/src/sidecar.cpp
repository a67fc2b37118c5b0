#include "sidecar.h"

#include "manifest.h"
#include "reader.h"

namespace edgekit {

namespace {

constexpr size_t kMaxRank = 5;
constexpr int64_t kMaxFileBytes = int64_t(4) << 30;

SidecarFile file_of(const JsonReader& json, const Json& value, const char* key) {
    const Json& item = json.object(value, key);
    SidecarFile out;
    out.file = json.text(item, "file");
    if (out.file.find('/') != std::string::npos || !path_problem(out.file).empty()) {
        throw json.fail(std::string("it names no plain file under '") + key + "'");
    }
    out.size = json.whole(item, "size", kMaxFileBytes);
    out.sha256 = json.sha256(item, "sha256");
    return out;
}

std::vector<SidecarTensor> tensors_of(const JsonReader& json, const Json& value, const char* key) {
    std::vector<SidecarTensor> out;
    for (const Json& item : json.objects(value, key)) {
        SidecarTensor tensor;
        tensor.blob = json.text(item, "blob");
        tensor.name = json.text(item, "name");
        tensor.shape = json.shape(item, "shape", kMaxRank);
        if (tensor.shape.size() > 1 && tensor.shape[0] != 1) {
            throw json.fail("'" + tensor.name + "' has a batch of more than 1");
        }
        out.push_back(tensor);
    }
    if (out.empty() || out.size() > 64) throw json.fail(std::string("it lists no usable '") + key + "'");
    return out;
}

bool option_name(const std::string& name) {
    return name.size() > 4 && name.size() <= 44 && name.compare(0, 4, "use_") == 0 &&
           name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
}

}  // namespace

Shape SidecarTensor::inner() const {
    return shape.size() > 1 ? Shape(shape.begin() + 1, shape.end()) : shape;
}

bool Sidecar::option(const std::string& name, bool otherwise) const {
    for (const auto& [known, value] : options) {
        if (known == name) return value;
    }
    return otherwise;
}

Sidecar parse_sidecar(const std::string& text, const std::string& what) {
    const JsonReader json(what);
    const Json value = Json::parse(text, what);
    const Json* format = value.is_object() ? value.find("format") : nullptr;
    if (!format || !format->is_text() || format->text() != "edgekit-ncnn") {
        throw json.fail("it does not describe an ncnn model of edgekit");
    }
    const Json* schema = value.find("schema");
    if (!schema || !schema->is_integer() || schema->integer() != 1) {
        throw json.fail("it has another schema; this program reads 1");
    }
    Sidecar out;
    out.precision = json.text(value, "precision");
    if (out.precision != "fp32" && out.precision != "fp16" && out.precision != "bf16" &&
        out.precision != "int8") {
        throw json.fail("it has an unknown precision");
    }
    out.param = file_of(json, value, "param");
    out.bin = file_of(json, value, "bin");
    out.inputs = tensors_of(json, value, "inputs");
    out.outputs = tensors_of(json, value, "outputs");
    for (const auto& [name, flag] : json.object(value, "options").members()) {
        if (!option_name(name) || !flag.is_boolean()) throw json.fail("it has an unusable option");
        out.options.emplace_back(name, flag.boolean());
    }
    for (const auto& [name, version] : json.object(value, "versions").members()) {
        if (!version.is_text()) throw json.fail("'versions' holds a value that is no text");
        out.versions[name] = version.text();
    }
    return out;
}

}  // namespace edgekit
