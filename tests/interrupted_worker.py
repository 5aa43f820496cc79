"""One of two processes that train, are interrupted in one of them, and go on: see
test_distributed.py. Arguments: a configuration file and where to write what happened."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from palate.cli.parsing import parse, parser_for
from palate.errors import Interrupted
from palate.pipeline.config import TrainConfig
from palate.pipeline.train import train
from palate.training.checkpoints import checkpoints


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


def press_ctrl_c_after(manifest: Path) -> None:
    wait_for(manifest)
    os.kill(os.getpid(), signal.SIGINT)


def main(configuration: str, report: str) -> None:
    config, _ = parse(parser_for("train", "", TrainConfig), TrainConfig, [configuration])
    training = Path(config.output) / "training"
    rank = int(os.environ["RANK"])
    if rank == 1:
        manifest = training / "checkpoint-2" / "complete.json"
        threading.Thread(target=press_ctrl_c_after, args=(manifest,), daemon=True).start()
    try:
        train(config)
    except Interrupted as stopped:
        found = {"message": str(stopped), "signal": stopped.signal}
    found["checkpoints"] = [path.name for path in checkpoints(training)]
    Path(f"{report}.{rank}").write_text(json.dumps(found))
    planted = Path(f"{report}.planted")
    if rank == 0:
        # Half of a checkpoint that a kill left behind; both processes see it and one may delete it.
        wait_for(Path(f"{report}.1"))  # it must not list what is planted here
        half = training / "checkpoint-99"
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"0")
        planted.touch()
    wait_for(planted)
    train(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
