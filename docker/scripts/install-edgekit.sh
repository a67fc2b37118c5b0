#!/bin/sh
# install-edgekit.sh SOURCE EXTRAS [VENV]: a virtual environment with edgekit and its extras.
#   SOURCE  a checkout or a wheel
#   EXTRAS  "" or a list such as "torch,ultralytics,ncnn"
#   VENV    default /opt/edgekit; SYSTEM_SITE=1 lets it see the system's Python packages (JetPack's
#           tensorrt)
# TORCH_INDEX is the package index that torch comes from, for example PyTorch's own of CPU wheels, which
# are a tenth of the size; default: pip's.
# The versions are those of constraints.txt when SOURCE is a checkout.
set -eu
source=$1
extras=$2
venv=${3:-/opt/edgekit}

if [ "${SYSTEM_SITE:-}" = 1 ]; then
    python3 -m venv --system-site-packages "$venv"
else
    python3 -m venv "$venv"
fi
set -- # the options that every call of pip below gets
if [ -f "$source/constraints.txt" ]; then
    set -- -c "$source/constraints.txt"
fi
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}
case ",$extras," in
    # first and alone: from then on nothing pulls another torch
    *,torch,*) pip install -q --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$@" torch ;;
esac
if [ -n "$extras" ]; then
    pip install -q --no-cache-dir "$@" "${source}[$extras]"
else
    pip install -q --no-cache-dir "$@" "$source"
fi
if pip show -qq opencv-python 2>/dev/null; then
    # ultralytics brings opencv-python, whose cv2 needs a desktop's libraries; both wheels own the
    # same folder, so the headless one is put back alone
    pip uninstall -q -y opencv-python opencv-python-headless
    pip install -q --no-cache-dir "$@" --no-deps opencv-python-headless
fi
ln -sf "$venv/bin/edgekit" /usr/local/bin/edgekit
edgekit --version
