#!/bin/sh
# With THP_MEM_ALLOC_ENABLE=1, torch asks Linux for huge pages for its tensors on CPUs, but not for weights that
# are packed for FBGEMM (quantized.linear_prepack_fp16, linear_prepack): these stay in pages of 4 kB, and they are
# what a quantised or float16 model reads in each pass. glibc's own switch, GLIBC_TUNABLES=glibc.malloc.hugetlb=1,
# covers both.
#
# torch 2.13.0 (CPU), Python 3.11, glibc 2.36, Linux with transparent huge pages by "madvise". It needs such a system.
#
# Seen (MB in huge pages after a tensor of 64 MB, and after packing 64 MB more):
#   THP_MEM_ALLOC_ENABLE=1: 64 and 64; GLIBC_TUNABLES: 64 and 128
# The script fails if packing with THP_MEM_ALLOC_ENABLE=1 adds huge pages.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cat > "$folder/pages.py" <<'PYTHON'
import torch


def huge():
    with open("/proc/self/smaps") as lines:
        return sum(int(l.split()[1]) for l in lines if l.startswith("AnonHugePages")) // 1024


small = torch.ones(16)
began = huge()
tensor = torch.ones(64 << 18)
after_tensor = huge() - began
weight = torch.zeros(4096, 8192)
began = huge()
packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
print(after_tensor, huge() - began)
PYTHON
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import subprocess
import sys

script = os.path.join(sys.argv[1], "pages.py")
others = {k: v for k, v in os.environ.items() if k not in ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")}


def megabytes(**environment):
    command = [sys.executable, script]
    shown = subprocess.run(
        command, env={**others, **environment}, capture_output=True, text=True, check=True
    )
    return [int(word) for word in shown.stdout.split()]


by_torch = megabytes(THP_MEM_ALLOC_ENABLE="1")
by_glibc = megabytes(GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
print("MB in huge pages, a tensor and packed weights of 64 MB each:")
print("THP_MEM_ALLOC_ENABLE", *by_torch, "GLIBC_TUNABLES", *by_glibc)
if by_glibc[1] < 32:
    sys.exit("this system gives no huge pages: nothing was shown")
sys.exit("packed weights are in huge pages by now" if by_torch[1] > 16 else 0)
PYTHON
