"""How long `palate audit` takes over many rows, and how much memory.

    python benchmarks/audit_million.py --rows 1000000

Writes a file of pairs (a prompt, two answers of about 600 characters each, from simulated text that
is put together anew for every row), audits it in a process of its own, and writes one JSON: wall
and CPU seconds, peak memory of the audit and its second process together, versions. Linux.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from palate.artifacts.files import write_json
from palate.artifacts.rundir import versions
from palate.simulation import world

MEAN_CHARACTERS = 600
NUM_PROMPTS = 2_000
POLL_SECONDS = 0.2


def write_pairs(path: Path, num_rows: int, seed: int = 0) -> float:
    """Write the pairs; return the mean characters of an answer."""
    groups = world("length", seed=seed, num_prompts=NUM_PROMPTS).groups
    prompts = [group.prompt[-1].content for group in groups]
    texts = [response.text for group in groups for response in group.responses]
    mean = sum(map(len, texts)) / len(texts)
    random = np.random.default_rng(seed)
    num_characters = 0
    with open(path, "w", encoding="utf-8") as handle:
        for row in range(num_rows):
            answers = []
            for _ in range(2):
                count = max(1, round(random.gamma(4, MEAN_CHARACTERS / mean / 4)))
                parts = [texts[i] for i in random.integers(len(texts), size=count)]
                answers.append(" ".join(parts) + f" That is {random.integers(10**9)}.")
            num_characters += sum(map(len, answers))
            prompt = f"{prompts[row % len(prompts)]} (case {row % (num_rows * 4 // 5)})"
            values = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
            handle.write(json.dumps(values) + "\n")
    return num_characters / (2 * num_rows)


def resident_bytes(pid: int) -> int:
    """Memory of a process and its children; 0 of one that has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(int(c)) for c in children)


def measure(command: list[str]) -> dict[str, float]:
    """Run a command; wall and CPU seconds and the peak of `resident_bytes`."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(POLL_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": peak,
        "peak_bytes_of_one_process": used.ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--output", default="benchmarks/results/audit_million.json")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        mean_characters = write_pairs(path, flags.rows)
        num_bytes = path.stat().st_size
        output = Path(folder) / "audit"
        measured = measure(
            [sys.executable, "-m", "palate", "audit", str(path), "--output", str(output)]
        )
        report = json.loads((output / "audit.json").read_text())
    write_json(
        flags.output,
        {
            "num_rows": flags.rows,
            "file_bytes": num_bytes,
            "mean_characters_of_an_answer": round(mean_characters, 1),
            **measured,
            "cores": len(os.sched_getaffinity(0)),
            "load_average_at_the_end": os.getloadavg()[0],
            "sampled_prompts": report["sample"]["groups"],
            "findings": [finding["check"] for finding in report["findings"]],
            "skipped": report["skipped"],
            "versions": versions(),
        },
    )
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
