"""The shell lines for boards without Python: constant texts, given their values on standard input.

POSIX sh with mkdir, ls, df, rm, mv, cp, ln, cat, sleep, kill, uname, tar and sha256sum: what Android's
toybox, busybox and every Linux have. Each script first reads the folder, and everything else it is
told, line by line from its input; the host lets only names through that need no quoting. The texts
stand between single quotes on one line, so they hold no single quote.
"""

from __future__ import annotations

BEGIN, END = "EDGEKIT-SHELL", "EDGEKIT-END"

_FOLDER = (
    'umask 077; echo EDGEKIT-SHELL; IFS= read -r R; case "$R" in "~/"*) R="$HOME/${R#??}";; esac; '
)
_INSIDE = _FOLDER + 'cd "$R" || exit 8; '

# every script ends by saying how it ended, so that a cut connection is told from a failure
_SCRIPT = "exec sh -c 'trap \"c=\\$?; echo; echo EDGEKIT-END \\$c\" EXIT; %s'"


def _command(text: str) -> str:
    assert "'" not in text and "\n" not in text
    return _SCRIPT % text


HELLO = _command(
    _FOLDER + 'if [ -d "$R" ] && [ -n "$(ls -A "$R")" ] && [ ! -f "$R/edgekit-device.json" ]; '
    "then echo FOREIGN; exit 0; fi; "
    "for t in sha256sum tar df tail; do command -v $t >/dev/null 2>&1 || "
    '{ echo "LACKS $t"; exit 0; }; done; '
    'mkdir -p "$R/objects" "$R/bundles" "$R/runs" "$R/incoming" && cd "$R" || exit 8; '
    'echo "{\\"format\\": \\"edgekit-device\\", \\"schema\\": 1}" > edgekit-device.json || exit 11; '
    "uname -s; uname -m; uname -n; df -Pk . | tail -n 1; pwd"
)
"""Makes the folder; prints system, machine, host, the line of df, and the folder's full name."""

MISSING = _command(
    _INSIDE + 'while read -r s && [ -n "$s" ]; do if [ -f objects/$s ]; then '
    'set -- $(sha256sum < objects/$s); [ "$1" = "$s" ] && continue; rm -f objects/$s; fi; '
    "echo $s; done; exit 0"
)
"""Reads hashes up to an empty line; prints those whose content is not there."""

UNPACK = _command(_INSIDE + "rm -rf incoming; mkdir incoming && cd incoming && tar xf -")
"""Reads a tar file of objects, by their hashes, into incoming/."""

CLEAR = _command(_INSIDE + "rm -rf incoming; mkdir incoming")

ACCEPT = _command(
    _INSIDE + 'for f in incoming/*; do [ -f "$f" ] || continue; s="${f#incoming/}"; '
    'set -- $(sha256sum < "$f"); '
    'if [ "$1" = "$s" ]; then mv "$f" objects/$s; else echo "$s"; fi; done; rm -rf incoming; exit 0'
)
"""Moves what arrived whole from incoming/ to objects/; prints the hashes of what did not."""

PLACE = _command(
    _INSIDE + 'read -r k; while read -r s p && [ -n "$s" ]; do t="bundles/$k/$p"; '
    'mkdir -p "${t%/*}" && rm -f "$t" && { ln objects/$s "$t" 2>/dev/null || cp objects/$s "$t"; } '
    "|| exit 11; done; exit 0"
)
"""Reads a bundle's key and lines of hash and path; makes the bundle's folder."""

START = _command(
    _INSIDE + "read -r r; read -r minder; read -r limit; read -r program; "
    "IFS= read -r emulator; [ -d runs/$r ] && exit 0; mkdir -p runs/$r/work && : > runs/$r/words || exit 11; "
    'while IFS= read -r a && [ -n "$a" ]; do echo "$a" >> runs/$r/words || exit 11; done; '
    'echo "$limit" > runs/$r/limit && echo "$PWD/$program" > runs/$r/program && '
    'echo "$emulator" > runs/$r/emulator || exit 11; '
    'chmod 700 "$program"; s=; command -v setsid >/dev/null 2>&1 && s=setsid; '
    '$s sh objects/$minder "$PWD/runs/$r" < /dev/null > /dev/null 2>&1 & exit 0'
)
"""Reads a run's name, the hash of MINDER, the limit in seconds, the program, an emulator or
nothing, and the words; starts it."""

MINDER = """\
# minds a run of edgekit in the folder $1: its limit, its outcome. Words are data: none is read as shell
trap '' HUP
cd "$1/work" || exit 1
echo $$ > ../pid
set --
while IFS= read -r word; do set -- "$@" "$word"; done < ../words
IFS= read -r program < ../program
IFS= read -r emulator < ../emulator
read -r limit < ../limit
${emulator:+"$emulator"} "$program" "$@" > ../stdout 2> ../stderr < /dev/null &
child=$!
(
    passed=0
    while [ $passed -lt $limit ]; do
        sleep 1
        passed=$((passed + 1))
    done
    echo late > ../late
    kill -9 $child
) &
clock=$!
wait $child
code=$?
kill -9 $clock
echo $code > ../exit.new
mv ../exit.new ../exit
"""

POLL = _command(
    _INSIDE + "read -r r; [ -d runs/$r ] || { echo NONE; exit 0; }; i=0; "
    "until [ -f runs/$r/exit ] || [ $i -ge 4 ]; do sleep 1; i=$((i+1)); done; "
    "if [ -f runs/$r/exit ]; then cat runs/$r/exit; [ -f runs/$r/late ] && echo late; exit 0; fi; "
    "p=; [ -f runs/$r/pid ] && read -r p < runs/$r/pid; "
    '[ -z "$p" ] || kill -0 $p 2>/dev/null || [ -f runs/$r/exit ] || echo LOST; exit 0'
)
"""Waits a little; prints the exit status and whether it was late, or nothing while it runs."""

FETCH = _command(_INSIDE + "read -r r; read -r n; cat runs/$r/$n")

REMOVE = _command(
    _INSIDE + "read -r r; if [ -f runs/$r/pid ] && [ ! -f runs/$r/exit ]; then "
    "read -r p < runs/$r/pid; kill -9 -$p 2>/dev/null || kill -9 $p 2>/dev/null; fi; "
    "rm -rf runs/$r"
)

PURGE = _command(
    _INSIDE + "rm -rf objects bundles runs incoming edgekit-device.json; ls -A; "
    'cd / && rmdir "$R" 2>/dev/null; exit 0'
)
