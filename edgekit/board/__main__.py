"""`python3 edgekit-device.pyz …`; this file alone also parses on Pythons that are too old."""

import sys

if sys.version_info < (3, 8):  # noqa: UP036 — this is where the others learn that they are too old
    sys.stdout.write(
        '{{"format": "edgekit-device", "schema": 1, "program": null, "command": null, '
        '"error": "This program needs Python 3.8 or newer; this is {}.{}.", '
        '"hint": "Call it with a newer one, such as python3.8 edgekit-device.pyz.", '
        '"exit_code": 3}}\n'.format(*sys.version_info)
    )
    sys.exit(3)

if __name__ == "__main__":
    from edgekit.board.main import main

    sys.exit(main(sys.argv[1:]))
