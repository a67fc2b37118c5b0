"""Whether a bundle's folder is what its manifest says: hashes, files nobody listed, SHA256SUMS."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.atomic import sha256_file
from edgekit.manifest import BUILT, MANIFEST, SUMS, FileEntry, Manifest


def sums_text(files: Mapping[str, FileEntry], manifest_sha256: str) -> str:
    """SHA256SUMS, as `sha256sum -c` reads it: every file of the bundle but itself, sorted."""
    hashes = {name: entry.sha256 for name, entry in files.items()}
    hashes[MANIFEST] = manifest_sha256
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def file_problem(manifest: Manifest, name: str) -> str | None:
    """What is wrong with the listed file `name`: missing, a link out, another size or content."""
    file, entry = manifest.path(name), manifest.files[name]
    try:
        real = file.resolve(strict=True)
    except FileNotFoundError:
        return "is missing"
    except (OSError, RuntimeError) as error:
        return f"cannot be read: {error}"
    if not real.is_relative_to(manifest.folder.resolve()):
        return "is a link that leads out of the bundle"
    if not real.is_file():
        return "is not a plain file"
    size = real.stat().st_size
    if size != entry.size_bytes:
        return f"has {size} bytes, not {entry.size_bytes}"
    try:
        digest = sha256_file(real)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest != entry.sha256:
        return f"has changed: sha256 {digest[:12]}…, not {entry.sha256[:12]}…"
    return None


def unlisted(manifest: Manifest) -> list[str]:
    """What lies in the folder without standing in the manifest: files, links, devices.

    In built/ a file belongs there by its sidecar, NAME and NAME.json; what the sidecar says is not
    looked at here.
    """
    folder = manifest.folder
    known = {*manifest.files, MANIFEST, SUMS}
    built = folder / BUILT
    if built.is_dir() and not built.is_symlink():
        for path in built.iterdir():
            sidecar = path.with_name(path.name + ".json")
            if path.is_file() and sidecar.is_file():
                known |= {f"{BUILT}/{path.name}", f"{BUILT}/{sidecar.name}"}
    return sorted(
        name
        for path in folder.rglob("*")
        if not (path.is_dir() and not path.is_symlink())
        for name in [path.relative_to(folder).as_posix()]
        if name not in known
    )


def sums_problem(manifest: Manifest) -> str | None:
    """Whether manifest.json is what SHA256SUMS says, and SHA256SUMS what the manifest says."""
    try:
        found = (manifest.folder / SUMS).read_bytes()
    except OSError as error:
        return f"{SUMS} cannot be read: {error.strerror}"
    expected = sums_text(manifest.files, sha256_file(manifest.folder / MANIFEST)).encode()
    if found == expected:
        return None
    expected_lines, found_lines = set(expected.splitlines()), set(found.splitlines())
    wrong = sorted(line.split()[-1].decode() for line in expected_lines - found_lines)
    if wrong == [MANIFEST]:
        return f"{MANIFEST} has changed (or its line in {SUMS} has)"
    return f"{SUMS} does not fit the manifest" + (f": {', '.join(wrong[:5])}" if wrong else "")
