"""`jaxtune watch DIR`: a page of this machine with live curves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.evaluation.watch_server import Server, serve


def run(output: Output, folder: Path, port: int) -> dict[str, Any]:
    server = Server(folder, port)
    print(f"{server.address} shows the runs in {folder}; Ctrl-C ends it", flush=True)  # with --json on stderr, as it is needed at once
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in its background deaf to Ctrl-C
        signal.signal(number, signal.default_int_handler)
    serve(server)
    output.say("ended")
    return {"address": server.address, "folder": str(folder), "runs": len(server.runs.known)}
