# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.9", "transformers>=4.57", "pydantic>=2.12", "ruamel.yaml>=0.18", "safetensors>=0.7",
# ]
# ///
"""Train a model by PPO, with a small trainer of our own: TRL has had none since 1.16.

    python study/ppo.py model_name_or_path=base output_dir=math-ppo task=math num_iterations=2

Checkpoints of PPO runs made elsewhere (verl, OpenRLHF) are plain folders and need none of this.

Settings are those of ``study/settings.py``, from a YAML file and as ``name=value``; ``--dry-run`` prints them.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the folder of `study` belongs on the path, and `study` itself does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from study.command import train_from_command_line

if __name__ == "__main__":
    train_from_command_line(("ppo",), __doc__)
