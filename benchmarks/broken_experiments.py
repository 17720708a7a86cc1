"""Every broken experiment of tests/cli/broken.txt in a process of its own: its words, its code, and how long the answer takes.

.venv/bin/python benchmarks/broken_experiments.py      -> benchmarks/results/broken_experiments.json
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "broken_experiments.json"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cli")]

import tiny_run
from broken_cases import DEVICES, cases, lay_out


def main() -> int:
    """0 when all of them are answered as documented and in time."""
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        lay_out(folder)
        there = {path.name for path in folder.iterdir()} | {"x.yaml", "__pycache__"}
        for case in cases():
            (folder / "x.yaml").write_text(case.text)
            began = time.perf_counter()
            done = tiny_run.run("train", "x.yaml", *case.words, folder=folder, devices=DEVICES)
            seconds = time.perf_counter() - began
            documented = (done.code, case.said(done.stderr, folder), done.stdout) == (case.exit_code, case.stderr, "")
            row = {
                "case": case.title,
                "exit_code": done.code,
                "as_documented": documented,
                "nothing_written": {path.name for path in folder.iterdir()} <= there,
                "processor_seconds": round(done.processor_seconds, 2),
                "wall_seconds": round(seconds, 2),
                "limit_seconds": case.limit_seconds,
            }
            row["passes"] = documented and row["nothing_written"] and done.processor_seconds < case.limit_seconds
            rows.append(row)
            print(
                f"{'ok  ' if row['passes'] else 'FAIL'} {done.processor_seconds:5.2f} s of {case.limit_seconds:.0f}  {case.title}",
                flush=True,
            )
    machine = {"platform": platform.platform(), "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
    passed = sum(row["passes"] for row in rows)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine, "cases": len(rows), "passed": passed, "rows": rows}, indent=1) + "\n")
    print(f"{passed} of {len(rows)} as documented and in time; {RESULT}")
    return int(passed < len(rows))


if __name__ == "__main__":
    sys.exit(main())
