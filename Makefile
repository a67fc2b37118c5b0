# make demo   a fresh clone becomes a working edgekit, and the main job runs once
# make test   a fresh clone is set up and tested   (SLOW=1 adds the tests that take minutes)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := .demo
SLOW   ?=
JOBS   ?= 2

.DELETE_ON_ERROR:
.PHONY: setup demo test lint unit bench-calibration bench-int8 bench-runner bench-evaluate bench-gate clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "edgekit needs Python 3.10 or newer; call make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "This Python has no venv: apt-get install python3-venv"; exit 3; }
	$(PYTHON) -m venv $(VENV)
	@# torch first and alone: from then on nothing pulls another one
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[torch,ultralytics,ncnn,tensorrt-rtx,dev]'
	@# ultralytics brings opencv-python, whose cv2 needs a desktop's libraries; both wheels own the
	@# same folder, so the headless one is put back alone
	$(BIN)/python -m pip uninstall -q -y opencv-python opencv-python-headless
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps opencv-python-headless
	@# TensorRT's Python bindings of several versions and CUDA's runtime (40 MB), without either: tests hold
	@# the board's adapter against them
	$(BIN)/python -m tests.native.tensorrt_bindings
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/cells/make_data.py --out $(DEMO)/val --count 200 --seed 3
	$(BIN)/edgekit export examples/cells/cells_pruned.pt --arch model:detector --code examples/cells \
		--imgsz 192 --target x86-int8 --images calib/ --data $(DEMO)/val/data.yaml --max-drop 1 \
		--color rgb --resize letterbox --scale 1/255 --mean 0,0,0 --std 1,1,1 \
		--out $(DEMO)/cells-x86-int8
	$(BIN)/edgekit verify $(DEMO)/cells-x86-int8

test: lint unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(if $(SLOW),,-m "not slow")

bench-calibration: $(STAMP)
	$(BIN)/python benchmarks/calibration.py

bench-int8: $(STAMP)
	$(BIN)/python benchmarks/int8.py

bench-runner: $(STAMP)
	$(BIN)/python benchmarks/runner.py

bench-evaluate: $(STAMP)
	$(BIN)/python benchmarks/evaluate_throughput.py

bench-gate: $(STAMP)
	$(BIN)/python benchmarks/regression_gate.py

# the native NCNN runner: for this machine, for 64-bit ARM, for 32-bit ARM
RUNNERS := runner-x86_64 runner-aarch64 runner-armhf
.PHONY: runner $(RUNNERS)
runner: runner-$(patsubst arm64,aarch64,$(patsubst armv7l,armhf,$(shell uname -m)))

$(RUNNERS): runner-%: $(STAMP)
	$(BIN)/edgekit runner build --arch $* --out build/$*/edgekit-ncnn

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
