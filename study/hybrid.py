# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.9", "transformers>=4.57", "pydantic>=2.12", "ruamel.yaml>=0.18", "safetensors>=0.7",
# ]
# ///
"""Train a model with a mixture of supervised and reinforcement learning.

    python study/hybrid.py algorithm=reft model_name_or_path=base output_dir=math-reft task=math
    python study/hybrid.py algorithm=chord ...                  both losses, SFT's weight falling
    python study/hybrid.py algorithm=sasr ...                   one or the other at each step

Settings are those of ``study/settings.py``, from a YAML file and as ``name=value``; ``--dry-run`` prints them.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the folder of `study` belongs on the path, and `study` itself does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from study.command import train_from_command_line

if __name__ == "__main__":
    train_from_command_line(("reft", "chord", "sasr", "iw-sft"), __doc__)
