# Every target sets up its own virtual environment in .venv, with the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data
OUTPUT ?= runs/joint-zh
OUT := $(OUTPUT:/=)

.PHONY: demo test lint joint-zh clean

demo: .venv/.installed  ## train the bundled model on the sample data (about three minutes on a CPU)
	$(BIN)/codiemb demo --output runs/demo

test: .venv/.installed  ## all tests, offline, in two processes of one thread each
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.installed  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

joint-zh: .venv/.installed  ## DATA=folder of public sets, OUTPUT=model directory (about an hour on two cores)
	@test -f $(OUT)/modules.json || rmdir $(OUT) 2>/dev/null || test ! -e $(OUT) || \
	  { echo "$(OUT) is not empty and holds no model: give OUTPUT=a new directory" >&2; exit 2; }
	$(BIN)/python recipes/prepare_joint_zh.py $(DATA) runs/joint-zh-data
	$(BIN)/codiemb train recipes/joint-zh.yaml output=$(OUT)-trained --resume
	test -f $(OUT)/modules.json || $(BIN)/codiemb fuse bundled $(OUT)-trained --scale 0.8 --output $(OUT)
	$(BIN)/codiemb evaluate $(OUT) --data runs/joint-zh-data/dev --compare bundled --output $(OUT)-scores

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

clean:  ## the environment and everything that was trained here
	rm -rf .venv runs
