#include "manifest.h"

#include <set>

#include "files.h"
#include "reader.h"
#include "sha256.h"

namespace edgekit {

namespace {

constexpr uint64_t kMaxManifestBytes = uint64_t(64) << 20;
constexpr int64_t kMaxFileBytes = int64_t(16) << 30;
constexpr size_t kMaxFiles = 10'000;
constexpr int64_t kMaxIndex = int64_t(1) << 31;

bool letter_or_digit(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

std::string lower(std::string text) {
    for (char& c : text) {
        if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
    }
    return text;
}

class ManifestReader {
public:
    explicit ManifestReader(const std::string& folder) : json(folder + "/manifest.json") {}

    std::map<std::string, FileEntry> files(const Json& raw) const {
        const Json& listed = json.object(raw, "files");
        if (listed.members().size() > kMaxFiles) throw json.fail("it lists too many files");
        std::map<std::string, FileEntry> out;
        // a board's FAT file system takes A and a for one name
        std::set<std::string> seen{"manifest.json", "sha256sums"};
        for (const auto& [name, item] : listed.members()) {
            const std::string problem = path_problem(name);
            if (!problem.empty()) throw json.fail("the path " + quoted(name) + " " + problem);
            if (!seen.insert(lower(name)).second) throw json.fail("the path " + name + " stands twice");
            if (!item.is_object()) throw json.fail("the entry of " + name + " must be an object");
            FileEntry entry;
            entry.size = json.whole(item, "size", kMaxFileBytes);
            entry.sha256 = json.sha256(item, "sha256");
            out[name] = entry;
        }
        return out;
    }

    std::vector<std::pair<std::string, Shape>> specs(const Json& value, const char* key) const {
        std::vector<std::pair<std::string, Shape>> out;
        for (const Json& item : json.objects(value, key)) {
            const Json* sizes = item.find("shape");
            if (!sizes || !sizes->is_array() || sizes->items().size() > 8) {
                throw json.fail(std::string("a shape in '") + key + "' must be a list");
            }
            Shape shape;
            for (const Json& size : sizes->items()) {
                const bool fixed = size.is_integer() && size.integer() >= 0 && size.integer() < kMaxIndex;
                if (!fixed && !size.is_text()) {
                    throw json.fail(std::string("a shape in '") + key + "' holds no number");
                }
                shape.push_back(fixed ? size.integer() : 0);
            }
            json.text(item, "dtype");
            out.emplace_back(json.text(item, "name"), shape);
        }
        return out;
    }

    ModelEntry model(const Json& value) const {
        ModelEntry entry;
        entry.runtime = json.text(value, "runtime");
        entry.precision = json.text(value, "precision");
        entry.files = json.texts(value, "files");
        entry.inputs = specs(value, "inputs");
        entry.outputs = specs(value, "outputs");
        if (entry.files.empty()) throw json.fail("a model without files");
        return entry;
    }

    GoldenLimits limits(const Json& value, const char* key) const {
        const Json& item = json.object(value, key);
        return {json.number(item, "max_rel_error"), json.number(item, "min_cosine")};
    }

    Block block(const Json& value) const {
        Block out;
        out.name = json.text(value, "name");
        out.output = json.text(value, "output");
        const Json* axes = value.find("axes");
        if (!axes || !axes->is_array() || axes->items().size() > 8) throw json.fail("golden: not a block");
        for (const Json& axis : axes->items()) {
            if (!axis.is_array()) throw json.fail("golden: an axis of a block is no list");
            std::vector<std::array<int64_t, 3>> spans;
            for (const Json& span : axis.items()) {
                std::array<int64_t, 3> found{};
                bool good = span.is_array() && span.items().size() == 3;
                for (size_t i = 0; good && i < 3; i++) {
                    const Json& index = span.items()[i];
                    good = index.is_integer() && index.integer() >= 0 && index.integer() < kMaxIndex;
                    if (good) found[i] = index.integer();
                }
                if (!good || found[2] < 1 || found[0] >= found[1]) {
                    throw json.fail("golden: a span of block " + quoted(out.name) + " is none");
                }
                spans.push_back(found);
            }
            out.axes.push_back(spans);
        }
        return out;
    }

    Golden golden(const Json& raw) const {
        const Json& value = json.object(raw, "golden");
        Golden out;
        out.runtime = json.text(value, "runtime");
        out.runtime_version = json.text(value, "runtime_version");
        out.cpu = json.text(value, "cpu");
        out.same = limits(value, "same");
        out.other = limits(value, "other");
        for (const Json& item : json.objects(value, "samples")) {
            GoldenEntry entry;
            entry.image = json.text(item, "image");
            entry.input = json.text(item, "input");
            for (const Json& output : json.objects(item, "outputs")) {
                entry.outputs.emplace_back(json.text(output, "name"), json.text(output, "file"));
            }
            out.samples.push_back(entry);
        }
        for (const Json& item : json.objects(value, "blocks")) out.blocks.push_back(block(item));
        return out;
    }

    // What is missing or odd keeps its default: it decides nothing but how long is measured.
    MeasureSettings measure(const Json& target) const {
        MeasureSettings out;
        const Json* value = target.find("measure");
        if (!value || !value->is_object()) return out;
        const auto whole = [&](const char* key, int& number, int64_t low, int64_t high) {
            const Json* item = value->find(key);
            if (item && item->is_integer() && item->integer() >= low && item->integer() <= high) {
                number = int(item->integer());
            }
        };
        whole("threads", out.threads, 1, 256);
        whole("warmup", out.warmup, 0, 10'000);
        whole("iterations", out.iterations, 1, 1'000'000);
        const Json* seconds = value->find("cooldown_s");
        if (seconds && seconds->is_number() && seconds->number() >= 0 && seconds->number() <= 600) {
            out.cooldown_s = seconds->number();
        }
        return out;
    }

    // Every file that a part of the manifest speaks of must stand in its list of files.
    void check_named(const Manifest& manifest, const Json& raw) const {
        std::vector<std::string> named{"preprocess.json", "README.txt"};
        if (const Json* calibration = raw.find("calibration")) {
            if (!calibration->is_object()) throw json.fail("'calibration' must be an object");
            const std::string file = json.optional_text(*calibration, "file");
            if (!file.empty()) named.push_back(file);
        }
        for (const ModelEntry& model : manifest.models) {
            named.insert(named.end(), model.files.begin(), model.files.end());
        }
        for (const GoldenEntry& sample : manifest.golden.samples) {
            named.push_back(sample.image);
            named.push_back(sample.input);
            for (const auto& output : sample.outputs) named.push_back(output.second);
        }
        for (const std::string& name : named) {
            if (manifest.files.count(name) == 0) {
                throw json.fail(quoted(name) + " is spoken of but not listed under 'files'");
            }
        }
    }

    JsonReader json;
};

}  // namespace

std::string path_problem(const std::string& name) {
    if (name.empty() || name.size() > 200) return "is empty or longer than 200 characters";
    if (name[0] == '/') return "is not a relative path with '/'";
    size_t start = 0;
    while (true) {
        const size_t end = std::min(name.find('/', start), name.size());
        const std::string part = name.substr(start, end - start);
        if (part.empty() || part == "." || part == "..") {
            return "leaves the folder or is not in its plain form";
        }
        for (size_t i = 0; i < part.size(); i++) {
            const char c = part[i];
            const bool first = letter_or_digit(c) || c == '_';
            if (!first && (i == 0 || (c != '.' && c != '+' && c != '-'))) {
                return "has a character that is not allowed (letters, digits, . _ + -)";
            }
        }
        if (end == name.size()) return "";
        start = end + 1;
    }
}

Manifest read_manifest(const std::string& folder) {
    if (!is_folder(folder)) {
        throw bad_input(folder + " is not a folder.", "Give the folder that `edgekit export` wrote.");
    }
    std::string text;
    try {
        text = read_file(folder + "/manifest.json", kMaxManifestBytes);
    } catch (const Error& error) {
        throw bad_input(folder + " is not a bundle: " + error.what(),
                        "Make one with `edgekit export CHECKPOINT --target TARGET --images DIR`.");
    }
    return parse_manifest(text, folder);
}

Manifest parse_manifest(const std::string& text, const std::string& folder) {
    const ManifestReader reader(folder);
    const Json raw = Json::parse(text, folder + "/manifest.json");
    if (!raw.is_object() || !raw.find("format") || !raw.find("format")->is_text() ||
        raw.find("format")->text() != "edgekit-bundle") {
        throw reader.json.fail("it is not the manifest of an edgekit bundle");
    }
    const Json* schema = raw.find("schema");
    if (!schema || !schema->is_integer() || schema->integer() != 1) {
        throw bad_input(folder + "/manifest.json has another schema; this program reads 1.",
                        "Update edgekit-ncnn, or export the bundle again.");
    }
    Manifest manifest;
    manifest.folder = folder;
    manifest.sha256 = sha256_hex(text);
    manifest.files = reader.files(raw);
    manifest.name = reader.json.text(raw, "name");
    reader.json.text(reader.json.object(raw, "versions"), "edgekit");
    const Json& target = reader.json.object(raw, "target");
    manifest.target = reader.json.text(target, "name");
    manifest.measure = reader.measure(target);
    manifest.task = reader.json.optional_text(raw, "task");
    manifest.head = reader.json.optional_text(raw, "head");
    manifest.names = reader.json.texts(raw, "names");
    manifest.checkpoint_sha256 = reader.json.optional_text(reader.json.object(raw, "checkpoint"), "sha256");
    reader.json.text(raw, "verdict");
    manifest.contract =
        Contract::from_json(reader.json.object(raw, "preprocess"), folder + "/manifest.json: preprocess");
    for (const Json& item : reader.json.objects(raw, "models")) {
        manifest.models.push_back(reader.model(item));
    }
    if (manifest.models.empty()) throw reader.json.fail("it names no model");
    manifest.golden = reader.golden(raw);
    reader.check_named(manifest, raw);
    return manifest;
}

}  // namespace edgekit
