#include "integrity.h"

#include <algorithm>
#include <filesystem>

#include "error.h"
#include "files.h"
#include "sha256.h"

namespace fs = std::filesystem;

namespace edgekit {

namespace {

constexpr uint64_t kMaxSumsBytes = 4 << 20;

// Whether the path, its links followed, lies inside the folder.
bool inside(const std::string& folder, const fs::path& real) {
    std::error_code code;
    const fs::path root = fs::canonical(folder, code);
    if (code) return false;
    const auto [end, rest] = std::mismatch(root.begin(), root.end(), real.begin(), real.end());
    return end == root.end() && rest != real.end();
}

// Everything but the content.
std::string place_problem(const Manifest& manifest, const std::string& name) {
    std::error_code code;
    const fs::path real = fs::canonical(manifest.path(name), code);
    if (code == std::errc::no_such_file_or_directory) return "is missing";
    if (code) return "cannot be read: " + code.message();
    if (!inside(manifest.folder, real)) return "is a link that leads out of the bundle";
    if (!fs::is_regular_file(real, code)) return "is not a plain file";
    const uintmax_t size = fs::file_size(real, code);
    const int64_t wanted = manifest.files.at(name).size;
    if (code || size != uintmax_t(wanted)) {
        return "has " + std::to_string(size) + " bytes, not " + std::to_string(wanted);
    }
    return "";
}

std::string content_problem(const std::string& found, const std::string& wanted) {
    if (found == wanted) return "";
    return "has changed: sha256 " + found.substr(0, 12) + "…, not " + wanted.substr(0, 12) + "…";
}

}  // namespace

std::string file_problem(const Manifest& manifest, const std::string& name) {
    const std::string problem = place_problem(manifest, name);
    if (!problem.empty()) return problem;
    try {
        return content_problem(sha256_file(manifest.path(name)), manifest.files.at(name).sha256);
    } catch (const Error& error) {
        return std::string("cannot be read: ") + error.what();
    }
}

std::string read_listed(const Manifest& manifest, const std::string& name, uint64_t most) {
    std::string problem = place_problem(manifest, name);
    std::string data;
    if (problem.empty()) {
        data = read_file(manifest.path(name), most);
        problem = content_problem(sha256_hex(data), manifest.files.at(name).sha256);
    }
    if (!problem.empty()) {
        throw Error(Exit::verification_failed, manifest.path(name) + " " + problem + ".",
                    "Copy the bundle again, or export it again; --self-test checks all of it.");
    }
    return data;
}

std::vector<std::string> unlisted(const Manifest& manifest) {
    std::vector<std::string> out;
    std::error_code code;
    fs::recursive_directory_iterator walk(manifest.folder, code), end;
    while (!code && walk != end) {
        std::error_code ignored;
        const bool folder = walk->is_directory(ignored) && !walk->is_symlink(ignored);
        const std::string name = walk->path().lexically_relative(manifest.folder).generic_string();
        const bool known = name == "manifest.json" || name == "SHA256SUMS" || manifest.files.count(name) > 0;
        if (!folder && !known) out.push_back(name);
        walk.increment(code);
    }
    if (code) out.push_back("(the folder cannot be read: " + code.message() + ")");
    std::sort(out.begin(), out.end());
    return out;
}

std::string sums_problem(const Manifest& manifest) {
    std::map<std::string, std::string> hashes;
    for (const auto& [name, entry] : manifest.files) hashes[name] = entry.sha256;
    hashes["manifest.json"] = manifest.sha256;
    std::string expected;
    for (const auto& [name, hash] : hashes) expected += hash + "  " + name + "\n";
    try {
        if (read_file(manifest.path("SHA256SUMS"), kMaxSumsBytes) == expected) return "";
    } catch (const Error& error) {
        return error.what();
    }
    return "SHA256SUMS does not fit the manifest";
}

}  // namespace edgekit
