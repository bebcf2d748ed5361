# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.9", "transformers>=4.57", "pydantic>=2.12", "ruamel.yaml>=0.18", "safetensors>=0.7",
#   "trl>=1.16", "peft>=0.17", "accelerate>=1.0", "datasets>=3",
# ]
# ///
"""Fine-tune a model on gold answers of one task.

    python study/sft.py model_name_or_path=base output_dir=math-sft task=math
    python study/sft.py ... style=foreign                       gold answers in a style the base hardly uses
    python study/sft.py ... algorithm=iw-sft                    importance-weighted
    accelerate launch study/sft.py --config real.yaml engine=trl

Settings are those of ``study/settings.py``, from a YAML file and as ``name=value``; ``--dry-run`` prints them.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the folder of `study` belongs on the path, and `study` itself does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from study.command import train_from_command_line

if __name__ == "__main__":
    train_from_command_line(("sft", "iw-sft"), __doc__)
