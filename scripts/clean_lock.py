"""Make a lock fit every build of torch: no hash and no local version label of torch, no packages of its CUDA build.

nvidia-ml-py, which only reads the facts of devices, is none of those.

`uv pip install -r` adds what the chosen build of torch needs beyond the lock: nothing for the CPU build, the CUDA
libraries for the other.
"""

import re
import sys
from pathlib import Path

HASHES = r"(?: \\\n(?:    --hash=\S+(?: \\)?\n)+|\n)"

path = Path(sys.argv[1])
text = path.read_text()
text = re.sub(rf"^torch==([\d.]+)(?:\+\w+)?{HASHES}", r"torch==\1\n", text, flags=re.M)
text = re.sub(rf"^(?:nvidia-(?!ml-py=)[\w-]+|cuda-[\w-]+|triton)==\S+{HASHES}", "", text, flags=re.M)
path.write_text(text)
