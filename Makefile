# Two commands on a fresh machine:  make demo   and   make test
PYTHON ?= python3
VENV ?= .venv
DATA ?= /usr/share/datasets/fashion-mnist
BIN := $(VENV)/bin

.PHONY: demo test test-all lint-check fuzz mutants coverage docs docs-table sample screenshots lint model clean

demo: $(VENV)/.installed
	$(BIN)/vitprune run recipes/demo.yaml
	$(BIN)/vitprune run recipes/demo-whole.yaml
	$(BIN)/vitprune report exported/demo exported/demo-whole

# Every promise by its quick tests; those marked slow say the same at more cases.
test: lint-check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal -m "not slow"

# The slow ones too, against the real tools around: twice as long and more.
test-all: lint-check $(VENV)/.installed-slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal

lint-check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# 5,000 damaged recipes, models, reports and ONNX files; ends with `N passed, M failed`.
fuzz: $(VENV)/.installed-test
	PYTHONPATH=tests/helpers OMP_NUM_THREADS=1 $(BIN)/python tests/hostile/fuzz.py --cases 5000

# Some ninety small faults, each against the tests of the promise it breaks; ends with `N passed, M failed`.
mutants: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --jobs 2

# The whole suite again, slower: names every line of vitprune/ that no test runs, and fails below 90 %.
coverage: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

# A static site in site/, its links and anchors checked.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build

# The record of the documentation's sample report, from a run of the demo, and its pictures; `docs` makes the page of it.
sample: demo
	$(BIN)/vitprune see exported/demo-whole
	$(BIN)/python docs/sample.py take
	$(BIN)/python docs/sample.py shoot

screenshots: $(VENV)/.installed-docs
	$(BIN)/python docs/sample.py shoot

lint: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# docs/families.md: family by stage, from the test run that it tells of.
docs-table: $(VENV)/.installed-test
	VITPRUNE_FAMILY_TABLE=docs/families.json OMP_NUM_THREADS=1 $(BIN)/pytest tests/whole/test_families.py -q
	$(BIN)/python tests/helpers/family_table.py docs/families.json docs/families.md

# The bundled model was made by this; hours on two cores, resumes from runs/demo-model.
model: $(VENV)/.installed
	$(BIN)/python -m vitprune.demo.train --data $(DATA)
	$(BIN)/python -m vitprune.demo.train --data $(DATA) --work runs/demo-model-2 --start vitprune/demo/model \
		--no-teacher --third 8 --slack 0.75
	$(BIN)/python -m vitprune.demo.train --data $(DATA) --work runs/demo-model-3 --start vitprune/demo/model \
		--no-teacher --third 6 --slack 0.75 --seed 2
	$(BIN)/python -m vitprune.demo.train --data $(DATA) --work runs/demo-model-4 --start vitprune/demo/model \
		--no-teacher --third 10 --slack 0.0 --seed 3

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-slow: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,slow]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,docs]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
