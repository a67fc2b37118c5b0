// model.json beside an ncnn model (docs/ncnn.md): what .param and .bin do not say.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tensor.h"

namespace edgekit {

struct SidecarTensor {
    std::string blob;
    std::string name;
    Shape shape;  // with the batch of 1

    // As ncnn has it, outermost first: without the batch.
    Shape inner() const;
};

struct SidecarFile {
    std::string file;
    int64_t size = 0;
    std::string sha256;
};

struct Sidecar {
    SidecarFile param;
    SidecarFile bin;
    std::vector<SidecarTensor> inputs;
    std::vector<SidecarTensor> outputs;
    std::string precision;
    std::vector<std::pair<std::string, bool>> options;
    std::map<std::string, std::string> versions;

    bool option(const std::string& name, bool otherwise) const;
};

// Reads and checks the text of a model.json; `what` names it. Throws Error (bad input).
Sidecar parse_sidecar(const std::string& text, const std::string& what);

}  // namespace edgekit
