"""What runs on the board while a host talks to it: keeps files by hash, starts runs, reports on them.

The host sends this file's text through the connection (edgekit.transports.bootstrap), so it imports
nothing of edgekit: Python 3.8 and its standard library. Names, paths and arguments arrive as data in
frames and never pass through a shell.

A frame is two big-endian uint32, the lengths of a JSON object and of raw bytes, then both. Requests
carry `op` and `id`; the answer carries the same `id`. An "alive" frame goes out every second or so,
also while a request is worked on. The folder `root` holds

    edgekit-device.json    says that the folder is ours
    objects/SHA256         the content of a file; SHA256.part is an upload that was cut off
    bundles/KEY/           bundles, hard links to objects
    runs/ID/               job.json, agent.py, state.json, stdout, stderr, work/

A run has a process of its own that outlives the connection: it holds `lock`, keeps the time limit,
ends every process of the run and writes the outcome into state.json, which has its room reserved from
the start so that a full disk cannot hide the outcome.
"""
