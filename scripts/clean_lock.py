"""Take torch's hashes and local version label out of a lock, so that its CPU and CUDA builds both satisfy it."""

import re
import sys
from pathlib import Path

path = Path(sys.argv[1])
text = path.read_text()
text = re.sub(r"^torch==([\d.]+)(?:\+\w+)?(?: \\\n(?:    --hash=\S+(?: \\)?\n)+|\n)", r"torch==\1\n", text, flags=re.M)
path.write_text(text)
