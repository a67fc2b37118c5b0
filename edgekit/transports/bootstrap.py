"""How the agent starts on a board: one constant command, and the agent's text sent through it.

The command is the same for every board and every request, so nothing a user can name is ever part of a
shell's text. It has no character that sh, csh or fish would read differently between single quotes.
"""

from __future__ import annotations

import functools
import sys
from importlib import resources

from edgekit.errors import EdgekitError

LEAST_PYTHON = (3, 8)
GREETING = b"EDGEKIT-PYTHON "
NO_PYTHON = b"EDGEKIT-NO-PYTHON"

# runs in any Python from 2.7 on, so that an old one can say that it is old; reads with os.read, which
# takes no byte more than asked for
_PYTHON = (
    "import os,sys;v=sys.version_info;"
    'os.write(1,("EDGEKIT-PYTHON %d.%d.%d\\n"%tuple(v[:3])).encode());'
    "v[:2]>=(3,8) or sys.exit(3);"
    # a json.py in the home folder must not stand in for Python's own
    "sys.path[:]=[p for p in sys.path if p];"
    'r=lambda n,b=b"":b if len(b)==n else r(n,b+(os.read(0,n-len(b)) or sys.exit(4)));'
    "s=r(int(r(8)));"
    'exec(compile(s,"edgekit-agent","exec"),{"__name__":"edgekit_agent","PROGRAM":s.decode()})'
)
_SHELL = (
    "command -v python3 >/dev/null 2>&1 || { echo EDGEKIT-NO-PYTHON; exit 127; }; "
    'exec python3 -u -c "$0"'
)
REMOTE_COMMAND = f"exec sh -c '{_SHELL}' '{_PYTHON}'"
"""What is run on a board, by whatever login shell it has."""

# in the order of their imports
_MODULES = ("files", "link", "store", "runs", "mind", "serve")
_LOADER = """
import sys, types
for name in ("edgekit", "edgekit.transports", "edgekit.transports.agent"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, text in SOURCES:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
sys.modules["edgekit.transports.agent.serve"].main(globals().get("PROGRAM", ""))
"""


def local_command() -> list[str]:
    """The same agent on this machine, in edgekit's own Python."""
    return [sys.executable, "-u", "-c", _PYTHON]


@functools.cache
def agent_program() -> bytes:
    """The agent's modules as one text that needs nothing but Python 3.8."""
    folder = resources.files("edgekit.transports") / "agent"
    sources = [
        (
            f"edgekit.transports.agent.{name}",
            (folder / f"{name}.py").read_text(encoding="utf-8"),
        )
        for name in _MODULES
    ]
    return f"SOURCES = {sources!r}\n{_LOADER}".encode()


def first_bytes() -> bytes:
    """What the command reads before the first frame: the length in eight digits, then the agent."""
    program = agent_program()
    return b"%08d" % len(program) + program


class PythonMissing(EdgekitError):
    """The board has no Python that the agent could run in; `version` is the old one's, or empty."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "", version: str = "") -> None:
        super().__init__(message, hint=hint)
        self.version = version
