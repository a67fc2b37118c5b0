#include "target.h"

#include "bundle.h"
#include "error.h"
#include "files.h"
#include "model.h"

namespace edgekit::fuzz {

Files read_files(const std::string& folder) {
    const Manifest manifest = read_manifest(folder);
    const ModelFiles model = read_model_files(manifest, ncnn_entry(manifest));
    return {read_file(folder + "/manifest.json", uint64_t(64) << 20), model.sidecar, model.param, model.bin};
}

Outcome run_one(const Files& files, std::string& message) {
    try {
        const Manifest manifest = parse_manifest(files.manifest, "bundle");
        const ModelEntry& entry = ncnn_entry(manifest);
        const Model model({files.sidecar, files.param, files.bin, "model.json"}, RunSettings());
        check_interface(manifest, entry, model.sidecar());
        Tensor input;
        input.shape = model.sidecar().inputs[0].shape;
        input.values.assign(size_t(count_of(input.shape)), 0.5f);
        const std::vector<Tensor> outputs = model.run(input);
        Decoder decoder(manifest, model.sidecar(), "", Suppression());
        Placement placement;
        placement.source_height = manifest.contract.height;
        placement.source_width = manifest.contract.width;
        decoder.answer(outputs, placement, "input");
    } catch (const Error& error) {
        message = error.what();
        return Outcome::refused;
    }
    return Outcome::ran;
}

}  // namespace edgekit::fuzz
