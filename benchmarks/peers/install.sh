#!/bin/sh
# Frameworks that `mmssl bench models` compares with, in an environment of their own on top of the
# torch that PYTHON has:  sh benchmarks/peers/install.sh [FOLDER]   (default: build/peers)
# Their code is installed from the package index and never becomes part of this repository.
set -eu
folder=${1:-build/peers}
python=${PYTHON:-python}
"$python" -m venv "$folder"
# The packages of PYTHON's own environment, torch above all, are visible but not installed again.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
"$folder/bin/python" -m pip install --quiet "torch-geometric>=2.6,<3"
"$folder/bin/python" -c 'import torch, torch_geometric as g; print("torch", torch.__version__, "torch_geometric", g.__version__)'
