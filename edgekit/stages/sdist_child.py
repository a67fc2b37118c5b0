"""Child process: fetch a source archive through pip's own configuration, whatever that names.

    python -m edgekit.stages.sdist_child PROJECT VERSION SHA256 OUT

pip's session and link finder do the work, so that indexes, find-links, proxies, certificates and
credentials are those of `pip install`, and no host is known here. `pip download` itself will not
serve: it runs the archive's build to learn its version, which takes minutes and, for archives that
name themselves after the day, is refused as inconsistent. This file imports nothing of edgekit.

Writes OUT and exits 0; or prints one line on stderr and exits 3 (pip is not there, or its inside is
another one than expected), 4 (no such archive), 5 (archives, but none with this hash).
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def main(project: str, version: str, sha256: str, out: str) -> int:
    """Write the source archive of `project` `version` with this hash to `out`; the exit code."""
    try:
        from pip._internal.commands import create_command
        from pip._internal.utils.temp_dir import global_tempdir_manager
    except ImportError as error:
        print(f"this Python has no usable pip ({error})", file=sys.stderr)
        return 3
    try:
        command = create_command("download")
        options, _ = command.parse_args(["--quiet", "--no-deps", "--no-binary", ":all:"])
        with command.main_context(), global_tempdir_manager():
            session = command._build_session(options)
            finder = command._build_package_finder(options=options, session=session)
            links = [
                candidate.link
                for candidate in finder.find_all_candidates(project)
                if str(candidate.version) == version and not candidate.link.is_wheel
            ]
            fetch = session.get
            wrong = ""
            for link in links:
                response = fetch(link.url_without_fragment, headers={"Accept-Encoding": "identity"})
                response.raise_for_status()
                found = hashlib.sha256(response.content).hexdigest()
                if found == sha256:
                    Path(out).write_bytes(response.content)
                    return 0
                wrong = f"{link.filename} has sha256 {found}, expected {sha256}"
    except (AttributeError, TypeError) as error:
        print(f"this pip's inside is not the expected one ({error})", file=sys.stderr)
        return 3
    except Exception as error:
        # requests' kinds of error live in pip's vendored copy; the parent shows the line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 4
    print(
        wrong
        or f"the package indexes that pip is set up with offer no source of {project} {version}",
        file=sys.stderr,
    )
    return 5 if wrong else 4


if __name__ == "__main__":
    os.environ["PIP_NO_COLOR"] = "1"
    sys.exit(main(*sys.argv[1:5]))
