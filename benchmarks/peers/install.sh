#!/bin/sh
# Frameworks that `mmssl bench models` compares with, in environments of their own on top of the
# torch that PYTHON has:  sh benchmarks/peers/install.sh [FOLDER]   (default: build/peers)
# Their code is installed from the package index and never becomes part of this repository.
set -eu
folder=${1:-build/peers}
python=${PYTHON:-python}

# The packages of PYTHON's own environment, torch above all, are visible but not installed again.
environment() {
  name=$1
  shift
  "$python" -m venv "$folder/$name"
  "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$("$folder/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
  "$folder/$name/bin/python" -m pip install --quiet "$@"
}

environment frameworks "torch-geometric>=2.6,<3" "implicit>=0.7,<0.8"
# RecBole 1.2.1 uses names that NumPy 2 and SciPy 1.12 no longer have. Its ray ends with Python 3.11.
environment recbole "recbole==1.2.1" "numpy<2" "scipy<1.12" "pandas<3"

"$folder/frameworks/bin/python" -c 'import torch, torch_geometric, implicit
for m in (torch, torch_geometric, implicit): print(m.__name__, m.__version__)'
"$folder/recbole/bin/python" -c 'import torch, recbole, numpy
for m in (torch, recbole, numpy): print(m.__name__, m.__version__)'
